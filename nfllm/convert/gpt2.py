"""Hugging Face GPT-2 (`GPT2LMHeadModel`): its config and its tensors, both ways.

Its matrices are stored [in, out]; `c_attn` concatenates query, key and value, each of which
concatenates its heads. Every projection has a bias.
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
)
from nfllm.convert.shared import Names, full_qkv_bias, layer_bias, write_norm
from nfllm.model.parameters import Params

ARCHITECTURE = "GPT2LMHeadModel"
# Causal masks, which older files store.
BUFFERS = re.compile(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)")
PREFIX = "transformer."
NAMES = Names(
    embedding="transformer.wte.weight",
    final_norm="transformer.ln_f",
    head="lm_head.weight",
    layers="transformer.h.{}.",
)

# Attributes with two names in transformers.
_ALIASES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
}
# In files of version 1 (n_ctx beside n_positions), or only about precision.
_IGNORED = ("n_ctx", "n_special", "predict_special_tokens", "reorder_and_upcast_attn")


def read_config(attributes: Attributes) -> tuple[ModelConfig, int]:
    """Our config and the vocabulary size; absent attributes have transformers' defaults.

    Raises:
      ConversionError: an attribute is not understood, or has a value that is not supported.
    """
    attributes.require("scale_attn_weights", True)
    attributes.require("scale_attn_by_inverse_layer_idx", False)
    attributes.require("add_cross_attention", False)
    attributes.require("is_causal", True)
    attributes.require("pruned_heads", {})
    attributes.ignore(_IGNORED)
    for name, alias in _ALIASES.items():
        attributes.take_alias(name, alias)
    activation, slope = attributes.activation("activation_function", "gelu_new")
    vocab_size = attributes.take("vocab_size", int, 50257)
    config = ModelConfig(
        architecture="gpt2",
        num_layers=attributes.take("n_layer", int, 12),
        num_heads=attributes.take("n_head", int, 12),
        embed_dim=attributes.take("n_embd", int, 768),
        mlp_dim=attributes.take("n_inner", int, None),
        context_length=attributes.take("n_positions", int, 1024),
        normalization="layernorm",
        final_normalization="layernorm",
        norm_epsilon=attributes.take("layer_norm_epsilon", float, 1e-5),
        activation=activation,
        negative_slope=slope,
        attention_bias="all",
        mlp_bias=True,
        tie_embeddings=attributes.take("tie_word_embeddings", bool, True),
        embedding_dropout=attributes.take_dropout("embd_pdrop", 0.1),
        attention_dropout=attributes.take_dropout("attn_pdrop", 0.1),
        residual_dropout=attributes.take_dropout("resid_pdrop", 0.1),
        init_std=attributes.take_init_std(),
        init_std_scaling="none",
    )
    attributes.finish()
    return config, vocab_size


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The architecture's attributes.

    Raises:
      ConfigError: the model cannot be expressed as a GPT-2 of transformers.
    """
    check_form(config, some=LAYERNORM)
    return {
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_embd": config.embed_dim,
        "n_inner": config.mlp_dim,
        "n_positions": config.context_length,
        "activation_function": activation_name(config),
        "layer_norm_epsilon": config.norm_epsilon,
        "tie_word_embeddings": config.ties_embeddings,
        "embd_pdrop": config.embedding_dropout,
        "attn_pdrop": config.attention_dropout,
        "resid_pdrop": config.residual_dropout,
        "initializer_range": config.init_std,
    }


def read_tensors(tensors: TensorReader, config: ModelConfig, vocab_size: int) -> Params:
    """Our parameters for a config that `read_config` returned."""
    width, hidden = config.embed_dim, config.mlp_width
    heads = (config.num_heads, config.head_dim)

    layers = NAMES.read_layers(tensors, config)
    return NAMES.read_ends(tensors, config, vocab_size) | {
        "position_embedding": tensors.take(
            "transformer.wpe.weight", (config.context_length, width)
        ),
        "blocks": {
            "attention_norm": layers.norm("ln_1"),
            "mlp_norm": layers.norm("ln_2"),
            "attention": {
                "qkv_kernel": layers.take("attn.c_attn.weight", width, 3 * width).reshape(
                    -1, width, 3, *heads
                ),
                "qkv_bias": layers.take("attn.c_attn.bias", 3 * width).reshape(-1, 3, *heads),
                "out_kernel": layers.take("attn.c_proj.weight", width, width).reshape(
                    -1, *heads, width
                ),
                "out_bias": layers.take("attn.c_proj.bias", width),
            },
            "mlp": {
                "in_kernel": layers.take("mlp.c_fc.weight", width, hidden),
                "in_bias": layers.take("mlp.c_fc.bias", hidden),
                "out_kernel": layers.take("mlp.c_proj.weight", hidden, width),
                "out_bias": layers.take("mlp.c_proj.bias", width),
            },
        },
    }


def write_tensors(params: Params, config: ModelConfig) -> Tensors:
    """The inverse of `read_tensors`; biases that our model lacks are written as zeros."""
    num_layers, width = config.num_layers, config.embed_dim
    blocks = params["blocks"]
    attention, mlp = blocks["attention"], blocks["mlp"]
    per_layer = {
        **write_norm("ln_1", blocks["attention_norm"]),
        **write_norm("ln_2", blocks["mlp_norm"]),
        "attn.c_attn.weight": attention["qkv_kernel"].reshape(num_layers, width, -1),
        "attn.c_attn.bias": full_qkv_bias(attention, config).reshape(num_layers, -1),
        "attn.c_proj.weight": attention["out_kernel"].reshape(num_layers, -1, width),
        "attn.c_proj.bias": layer_bias(attention, "out_bias", num_layers, width),
        "mlp.c_fc.weight": mlp["in_kernel"],
        "mlp.c_fc.bias": layer_bias(mlp, "in_bias", num_layers, config.mlp_width),
        "mlp.c_proj.weight": mlp["out_kernel"],
        "mlp.c_proj.bias": layer_bias(mlp, "out_bias", num_layers, width),
    }
    positions = {"transformer.wpe.weight": params["position_embedding"]}
    return positions | NAMES.write(params, config, per_layer)
