"""Parameters under the names of the code released with arXiv 2410.09637.

The released GPT-2 keeps query and key in one matrix, values in another, all stored [in, out], and
registers biases of the other projections that are zero and never trained; they are dropped here and
come back as zeros. With slopes "per layer", its every block owns a vector of L slopes and uses the
entry of its own index: the others change nothing, are dropped here, and come back as zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nfllm.config import ModelConfig
from nfllm.convert.foreign import ConversionError, Tensors, check_expressed, split_layers

_NORMS = {"attention_norm": "ln_1", "mlp_norm": "ln_2"}
_FROZEN_BIASES = ("attn.v_attn.bias", "attn.c_proj.bias", "mlp.c_fc.bias", "mlp.c_proj.bias")


def from_authors(tensors: Mapping[str, np.ndarray], config: ModelConfig) -> dict[str, Any]:
    """nfllm's parameters from the released code's, both float32.

    Also maps gradients, and optimizer moments, which have the parameters' names.

    Args:
      tensors: `{"transformer.h.0.attn.qk_attn.weight": [D, 2D], ...}`.
      config: a gpt2 config with `attention_bias="qk"`, no MLP bias and tied embeddings.

    Raises:
      ConfigError: the released code has no such model.
      ConversionError: a bias that it never trains is not zero.
    """
    _check(config)
    for layer in range(config.num_layers):
        for bias in _FROZEN_BIASES:
            name = f"transformer.h.{layer}.{bias}"
            if np.any(tensors.get(name, 0.0)):
                raise ConversionError(
                    f"{name} is not zero; the released code never trains it, and this model has no "
                    "place for it"
                )
    heads, width = config.num_heads, config.embed_dim

    def stacked(name: str) -> np.ndarray:
        layers = range(config.num_layers)
        return np.stack([tensors[f"transformer.h.{layer}.{name}"] for layer in layers])

    def split_heads(x: np.ndarray, parts: int) -> np.ndarray:
        return x.reshape(*x.shape[:-1], parts, heads, config.head_dim)

    qk = split_heads(stacked("attn.qk_attn.weight"), 2)
    value = split_heads(stacked("attn.v_attn.weight"), 1)
    out = stacked("attn.c_proj.weight")
    blocks: dict[str, Any] = {
        "attention": {
            "qkv_kernel": np.concatenate([qk, value], axis=2),
            "qk_bias": split_heads(stacked("attn.qk_attn.bias"), 2),
            "out_kernel": out.reshape(-1, heads, config.head_dim, width),
        },
        "mlp": {
            "in_kernel": stacked("mlp.c_fc.weight"),
            "out_kernel": stacked("mlp.c_proj.weight"),
        },
    }
    if config.normalization == "layernorm":
        for ours, theirs in _NORMS.items():
            blocks[ours] = {"scale": stacked(f"{theirs}.weight"), "bias": stacked(f"{theirs}.bias")}
    if config.activation == "learnable_leaky_relu":
        slopes = stacked("mlp.act.slopes")
        own = np.arange(config.num_layers) if slopes.shape[1] > 1 else 0
        blocks["mlp"]["slope"] = slopes[np.arange(config.num_layers), own]
    return {
        "token_embedding": tensors["transformer.wte.weight"],
        "position_embedding": tensors["transformer.wpe.weight"],
        "blocks": blocks,
        "final_norm": {
            "scale": tensors["transformer.ln_f.weight"],
            "bias": tensors["transformer.ln_f.bias"],
        },
    }


def to_authors(params: Mapping[str, Any], config: ModelConfig) -> Tensors:
    """The released code's parameters from nfllm's: the inverse of `from_authors`.

    Raises:
      ConfigError: the released code has no such model.
    """
    _check(config)
    num_layers, width = config.num_layers, config.embed_dim
    blocks, attention, mlp = (
        params["blocks"],
        params["blocks"]["attention"],
        params["blocks"]["mlp"],
    )
    qkv = np.asarray(attention["qkv_kernel"])
    per_layer = {
        "attn.qk_attn.weight": qkv[:, :, :2].reshape(num_layers, width, -1),
        "attn.qk_attn.bias": np.asarray(attention["qk_bias"]).reshape(num_layers, -1),
        "attn.v_attn.weight": qkv[:, :, 2].reshape(num_layers, width, -1),
        "attn.v_attn.bias": np.zeros((num_layers, width), np.float32),
        "attn.c_proj.weight": np.asarray(attention["out_kernel"]).reshape(num_layers, -1, width),
        "attn.c_proj.bias": np.zeros((num_layers, width), np.float32),
        "mlp.c_fc.weight": np.asarray(mlp["in_kernel"]),
        "mlp.c_fc.bias": np.zeros((num_layers, config.mlp_width), np.float32),
        "mlp.c_proj.weight": np.asarray(mlp["out_kernel"]),
        "mlp.c_proj.bias": np.zeros((num_layers, width), np.float32),
    }
    if config.normalization == "layernorm":
        for ours, theirs in _NORMS.items():
            per_layer[f"{theirs}.weight"] = np.asarray(blocks[ours]["scale"])
            per_layer[f"{theirs}.bias"] = np.asarray(blocks[ours]["bias"])
    if config.activation == "learnable_leaky_relu":
        slopes = np.asarray(mlp["slope"])
        own = np.diag(slopes) if config.slope_sharing != "untied_global" else slopes[:, None]
        per_layer["mlp.act.slopes"] = own
    tensors = {
        "transformer.wte.weight": np.asarray(params["token_embedding"]),
        "transformer.wpe.weight": np.asarray(params["position_embedding"]),
        "transformer.ln_f.weight": np.asarray(params["final_norm"]["scale"]),
        "transformer.ln_f.bias": np.asarray(params["final_norm"]["bias"]),
    }
    return tensors | split_layers(per_layer, "transformer.h.{}.")


def _check(config: ModelConfig) -> None:
    check_expressed(
        config,
        "the released code",
        every=("mlp_dim", "norm_epsilon", "activation", "negative_slope", "helu_margin"),
        some={
            "attention_bias": ["qk"],
            "tie_embeddings": [True, None],
            "normalization": ["layernorm", "none"],
            "final_normalization": ["layernorm"],
            # Its slopes are one per layer under either name.
            "slope_sharing": ["layer", "untied_global", None],
        },
    )
