"""Hugging Face Llama (`LlamaForCausalLM`): its config and its tensors, both ways.

Its matrices are stored [out, in]. Queries, keys and values have separate matrices, each of which
concatenates its heads; the activation is applied to `gate_proj`, and `up_proj` is our `in_kernel`.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from nfllm.config import ModelConfig
from nfllm.convert.foreign import (
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

ARCHITECTURE = "LlamaForCausalLM"
# Rotary frequencies, which older files store.
BUFFERS = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
PREFIX = "model."
NAMES = Names(
    embedding="model.embed_tokens.weight",
    final_norm="model.norm",
    head="lm_head.weight",
    layers="model.layers.{}.",
)

_FORM: dict[str, list[Any]] = {
    "mlp": ["gated"],
    "normalization": ["rmsnorm"],
    "final_normalization": ["rmsnorm"],
    "rotary_fraction": [None, 1.0],
}
_MLP = {"gate_proj": "gate", "up_proj": "in", "down_proj": "out"}


def read_config(attributes: Attributes) -> tuple[ModelConfig, int]:
    """Our config and the vocabulary size; absent attributes have transformers' defaults.

    Raises:
      ConversionError: an attribute is not understood, or has a value that is not supported.
    """
    attributes.require("is_causal", True)
    attributes.require("pruned_heads", {})
    attributes.ignore(("add_cross_attention",))
    nested = nested_rotary(attributes)
    base = stated_once(nested, attributes, ("rope_theta", "rope_theta"), 10_000.0)
    nested.finish(notes=False)
    activation, slope = attributes.activation("hidden_act", "silu")
    vocab_size = attributes.take("vocab_size", int, 32000)
    num_heads = attributes.take("num_attention_heads", int, 32)
    kv_heads = attributes.take("num_key_value_heads", int, None)
    config = ModelConfig(
        architecture="llama",
        num_layers=attributes.take("num_hidden_layers", int, 32),
        num_heads=num_heads,
        num_kv_heads=None if kv_heads == num_heads else kv_heads,
        embed_dim=attributes.take("hidden_size", int, 4096),
        mlp="gated",
        mlp_dim=attributes.take("intermediate_size", int, 11008),
        context_length=attributes.take("max_position_embeddings", int, 2048),
        normalization="rmsnorm",
        final_normalization="rmsnorm",
        norm_epsilon=attributes.take("rms_norm_eps", float, 1e-6),
        activation=activation,
        negative_slope=slope,
        attention_bias="all" if attributes.take("attention_bias", bool, False) else "none",
        mlp_bias=attributes.take("mlp_bias", bool, False),
        tie_embeddings=attributes.take("tie_word_embeddings", bool, False),
        rotary_base=base,
        attention_dropout=attributes.take_dropout("attention_dropout", 0.0),
        init_std=attributes.take_init_std(),
        init_std_scaling="none",
    )
    attributes.require("head_dim", config.head_dim, None)
    attributes.finish()
    return config, vocab_size


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The architecture's attributes.

    Raises:
      ConfigError: the model cannot be expressed as a Llama of transformers.
    """
    check_form(config, some=_FORM, every=["num_kv_heads"])
    for key in ("embedding_dropout", "residual_dropout"):
        if (value := getattr(config, key)) != 0:
            raise not_expressible(key, value, [0.0])
    base = config.rotary_wavelength_base
    return {
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "hidden_size": config.embed_dim,
        "head_dim": config.head_dim,
        "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.context_length,
        "hidden_act": activation_name(config),
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.ties_embeddings,
        "attention_bias": config.attention_bias != "none",
        "mlp_bias": config.mlp_bias,
        "attention_dropout": config.attention_dropout,
        "initializer_range": config.init_std,
        "rope_parameters": {"rope_type": "default", "rope_theta": base},
        "rope_theta": base,  # the same for transformers 4
    }


def read_tensors(tensors: TensorReader, config: ModelConfig, vocab_size: int) -> Params:
    """Our parameters, of a config that `read_config` returned."""
    width, hidden, head_dim = config.embed_dim, config.mlp_width, config.head_dim
    layers = NAMES.read_layers(tensors, config)

    def heads(name: str, count: int) -> np.ndarray:
        kernel = layers.matrix(f"self_attn.{name}_proj", width, count * head_dim)
        return kernel.reshape(-1, width, count, head_dim)

    counts = {"q": config.num_heads, "k": config.kv_heads, "v": config.kv_heads}
    kernels = {name: heads(name, count) for name, count in counts.items()}
    attention = _joined("kernel", kernels, 2)
    out = layers.matrix("self_attn.o_proj", width, width)
    attention["out_kernel"] = out.reshape(-1, config.num_heads, head_dim, width)
    if config.attention_bias == "all":
        biases = {
            name: layers.take(f"self_attn.{name}_proj.bias", count * head_dim)
            for name, count in counts.items()
        }
        by_head = {name: x.reshape(-1, counts[name], head_dim) for name, x in biases.items()}
        attention |= _joined("bias", by_head, 1)
        attention["out_bias"] = layers.take("self_attn.o_proj.bias", width)
    mlp = {}
    for name, ours in _MLP.items():
        sizes = (hidden, width) if ours == "out" else (width, hidden)
        mlp[f"{ours}_kernel"] = layers.matrix(f"mlp.{name}", *sizes)
        if config.mlp_bias:
            mlp[f"{ours}_bias"] = layers.take(f"mlp.{name}.bias", sizes[1])
    return NAMES.read_ends(tensors, config, vocab_size) | {
        "blocks": {
            "attention_norm": layers.norm("input_layernorm"),
            "mlp_norm": layers.norm("post_attention_layernorm"),
            "attention": attention,
            "mlp": mlp,
        },
    }


def _joined(kind: str, parts: dict[str, np.ndarray], axis: int) -> dict[str, np.ndarray]:
    """Our parameters of query, key and value: one array if all have as many heads, else two."""
    q, k, v = parts["q"], parts["k"], parts["v"]
    if q.shape == k.shape:
        return {f"qkv_{kind}": np.stack([q, k, v], axis)}
    return {f"q_{kind}": q, f"kv_{kind}": np.stack([k, v], axis)}


def write_tensors(params: Params, config: ModelConfig) -> Tensors:
    """The inverse of `read_tensors`; attention biases that our model lacks are written as zeros."""
    num_layers, width = config.num_layers, config.embed_dim
    blocks = params["blocks"]
    attention, mlp = blocks["attention"], blocks["mlp"]
    if config.groups_heads:
        kernels = [attention["q_kernel"], *np.moveaxis(attention["kv_kernel"], 2, 0)]
    else:
        kernels = list(np.moveaxis(attention["qkv_kernel"], 2, 0))
    out = attention["out_kernel"].reshape(num_layers, -1, width)
    per_layer = {
        **write_norm("input_layernorm", blocks["attention_norm"]),
        **write_norm("post_attention_layernorm", blocks["mlp_norm"]),
        "self_attn.o_proj.weight": out.swapaxes(1, 2),
    }
    for name, kernel in zip("qkv", kernels, strict=True):
        matrix = kernel.reshape(num_layers, width, -1)
        per_layer[f"self_attn.{name}_proj.weight"] = matrix.swapaxes(1, 2)
    if config.attention_bias != "none":
        if config.groups_heads:
            biases = [attention["q_bias"], *np.moveaxis(attention["kv_bias"], 1, 0)]
        else:
            biases = list(np.moveaxis(full_qkv_bias(attention, config), 1, 0))
        for name, bias in zip("qkv", biases, strict=True):
            per_layer[f"self_attn.{name}_proj.bias"] = bias.reshape(num_layers, -1)
        per_layer["self_attn.o_proj.bias"] = layer_bias(attention, "out_bias", num_layers, width)
    for name, ours in _MLP.items():
        per_layer[f"mlp.{name}.weight"] = mlp[f"{ours}_kernel"].swapaxes(1, 2)
        if config.mlp_bias:
            per_layer[f"mlp.{name}.bias"] = mlp[f"{ours}_bias"]
    return NAMES.write(params, config, per_layer)
