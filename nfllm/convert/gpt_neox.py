"""Hugging Face GPT-NeoX (`GPTNeoXForCausalLM`, Pythia's): its config and its tensors, both ways.

Its matrices are stored [out, in]; the rows of `query_key_value` are ordered by head first, and
within a head by query, key and value.
"""

from __future__ import annotations

import re
from typing import Any

from nfllm.config import ModelConfig
from nfllm.convert.foreign import (
    LAYERNORM,
    Attributes,
    TensorReader,
    Tensors,
    activation_name,
    check_form,
    not_expressible,
)
from nfllm.convert.rotary import nested_rotary, stated_once
from nfllm.convert.shared import Names, full_qkv_bias, layer_bias, write_norm
from nfllm.model.parameters import Params

ARCHITECTURE = "GPTNeoXForCausalLM"
# Causal masks and rotary frequencies, which older files store.
BUFFERS = re.compile(r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)")
PREFIX = "gpt_neox."
NAMES = Names(
    embedding="gpt_neox.embed_in.weight",
    final_norm="gpt_neox.final_layer_norm",
    head="embed_out.weight",
    layers="gpt_neox.layers.{}.",
)

# In the files of GPT-NeoX-20B and of its training code; transformers does not read them.
_IGNORED = ("attention_probs_dropout_prob", "hidden_dropout_prob", "rotary_ndims")


def read_config(attributes: Attributes) -> tuple[ModelConfig, int]:
    """Our config and the vocabulary size; absent attributes have transformers' defaults.

    Raises:
      ConversionError: an attribute is not understood, or has a value that is not supported.
    """
    attributes.require("use_parallel_residual", True)
    attributes.require("is_causal", True)
    attributes.require("pruned_heads", {})
    attributes.ignore((*_IGNORED, "add_cross_attention"))
    activation, slope = attributes.activation("hidden_act", "gelu")
    vocab_size = attributes.take("vocab_size", int, 50432)
    fraction, base = _read_rotary(attributes)
    dropout = attributes.take_dropout("hidden_dropout", 0.0)
    biased = attributes.take("attention_bias", bool, True)
    config = ModelConfig(
        architecture="gpt_neox",
        num_layers=attributes.take("num_hidden_layers", int, 44),
        num_heads=attributes.take("num_attention_heads", int, 64),
        embed_dim=attributes.take("hidden_size", int, 6144),
        mlp_dim=attributes.take("intermediate_size", int, 24576),
        context_length=attributes.take("max_position_embeddings", int, 2048),
        normalization="layernorm",
        final_normalization="layernorm",
        norm_epsilon=attributes.take("layer_norm_eps", float, 1e-5),
        activation=activation,
        negative_slope=slope,
        attention_bias="all" if biased else "none",
        mlp_bias=True,
        tie_embeddings=attributes.take("tie_word_embeddings", bool, False),
        rotary_fraction=fraction,
        rotary_base=base,
        embedding_dropout=dropout,
        attention_dropout=attributes.take_dropout("attention_dropout", 0.0),
        residual_dropout=dropout,
        init_std=attributes.take_init_std(),
        init_std_scaling="none",
    )
    attributes.finish()
    return config, vocab_size


def _read_rotary(attributes: Attributes) -> tuple[float, float]:
    """Rotated fraction of each head, and base; transformers 4 and 5 name them differently."""
    nested = nested_rotary(attributes)
    fraction = stated_once(nested, attributes, ("partial_rotary_factor", "rotary_pct"), 0.25)
    base = stated_once(nested, attributes, ("rope_theta", "rotary_emb_base"), 10_000.0)
    nested.finish(notes=False)
    return fraction, base


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The architecture's attributes.

    Raises:
      ConfigError: the model cannot be expressed as a GPT-NeoX of transformers.
    """
    check_form(config, some=LAYERNORM)
    if config.residual_dropout != config.embedding_dropout:
        raise not_expressible(
            "residual_dropout", config.residual_dropout, [config.embedding_dropout]
        )
    fraction, base = config.rotary_share, config.rotary_wavelength_base
    return {
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "hidden_size": config.embed_dim,
        "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.context_length,
        "hidden_act": activation_name(config),
        "layer_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.ties_embeddings,
        "attention_bias": config.attention_bias != "none",
        "hidden_dropout": config.embedding_dropout,
        "attention_dropout": config.attention_dropout,
        "initializer_range": config.init_std,
        "use_parallel_residual": True,
        "rope_parameters": {
            "rope_type": "default",
            "partial_rotary_factor": fraction,
            "rope_theta": base,
        },
        # The names of transformers 4 for the same.
        "rotary_pct": fraction,
        "rotary_emb_base": base,
    }


def read_tensors(tensors: TensorReader, config: ModelConfig, vocab_size: int) -> Params:
    """Our parameters for a config that `read_config` returned."""
    width, hidden = config.embed_dim, config.mlp_width
    num_heads, head_dim = config.num_heads, config.head_dim

    layers = NAMES.read_layers(tensors, config)
    qkv_LDHCK = layers.matrix("attention.query_key_value", width, 3 * width).reshape(
        -1, width, num_heads, 3, head_dim
    )
    attention = {
        "qkv_kernel": qkv_LDHCK.swapaxes(2, 3),
        "out_kernel": layers.matrix("attention.dense", width, width).reshape(
            -1, num_heads, head_dim, width
        ),
    }
    if config.attention_bias == "all":
        bias_LHCK = layers.take("attention.query_key_value.bias", 3 * width).reshape(
            -1, num_heads, 3, head_dim
        )
        attention["qkv_bias"] = bias_LHCK.swapaxes(1, 2)
        attention["out_bias"] = layers.take("attention.dense.bias", width)
    return NAMES.read_ends(tensors, config, vocab_size) | {
        "blocks": {
            "attention_norm": layers.norm("input_layernorm"),
            "mlp_norm": layers.norm("post_attention_layernorm"),
            "attention": attention,
            "mlp": {
                "in_kernel": layers.matrix("mlp.dense_h_to_4h", width, hidden),
                "in_bias": layers.take("mlp.dense_h_to_4h.bias", hidden),
                "out_kernel": layers.matrix("mlp.dense_4h_to_h", hidden, width),
                "out_bias": layers.take("mlp.dense_4h_to_h.bias", width),
            },
        },
    }


def write_tensors(params: Params, config: ModelConfig) -> Tensors:
    """The inverse of `read_tensors`; biases that our model lacks are written as zeros."""
    num_layers, width = config.num_layers, config.embed_dim
    blocks = params["blocks"]
    attention, mlp = blocks["attention"], blocks["mlp"]
    qkv_LDHCK = attention["qkv_kernel"].swapaxes(2, 3)
    per_layer = {
        **write_norm("input_layernorm", blocks["attention_norm"]),
        **write_norm("post_attention_layernorm", blocks["mlp_norm"]),
        "attention.query_key_value.weight": qkv_LDHCK.reshape(num_layers, width, -1).swapaxes(1, 2),
        "attention.dense.weight": attention["out_kernel"]
        .reshape(num_layers, -1, width)
        .swapaxes(1, 2),
        "mlp.dense_h_to_4h.weight": mlp["in_kernel"].swapaxes(1, 2),
        "mlp.dense_h_to_4h.bias": layer_bias(mlp, "in_bias", num_layers, config.mlp_width),
        "mlp.dense_4h_to_h.weight": mlp["out_kernel"].swapaxes(1, 2),
        "mlp.dense_4h_to_h.bias": layer_bias(mlp, "out_bias", num_layers, width),
    }
    if config.attention_bias != "none":
        bias_LHCK = full_qkv_bias(attention, config).swapaxes(1, 2)
        per_layer["attention.query_key_value.bias"] = bias_LHCK.reshape(num_layers, -1)
        per_layer["attention.dense.bias"] = layer_bias(attention, "out_bias", num_layers, width)
    return NAMES.write(params, config, per_layer)
