"""Folds frozen norms into the matrices that read them, which gives a norm-free model with biases.

    ((x - mean(x)) / sigma * scale + bias) W + b  =  x P diag(scale / sigma) W + (bias W + b)

P = I - 1 1ᵀ / D subtracts the mean. The algebra is exact and computed in float64; the two models
differ only by the rounding of their parameters to float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nfllm.config import ModelConfig, RemovalConfig
from nfllm.config.derived import Site
from nfllm.config.names import FROZEN
from nfllm.convert.foreign import ConversionError
from nfllm.model.decoder import Decoder
from nfllm.model.frozen_norm import GATE, QUERY_KEY, SIGMA, VALUE
from nfllm.model.layers import stacks
from nfllm.model.norm_sites import KEYS, norm_names
from nfllm.model.parameters import Params
from nfllm.run import Run

Arrays = dict[str, Any]

# For each part of a matrix, the output of the norm before attention that it reads.
_PATHS = {"qkv": (QUERY_KEY, QUERY_KEY, VALUE), "q": (QUERY_KEY,), "kv": (QUERY_KEY, VALUE)}


def fold(run: Run) -> Run:
    """A run without norms that computes the same as `run`, whose norms are frozen.

    The result is in memory; `nfllm.save_run(folded, path)` writes it.

    Args:
      run: a run with `frozen_layernorm`, all of whose norms are frozen: by a removal schedule that
        has ended, or by `nfllm.freeze_norms`.

    Raises:
      ConversionError: the model has no frozen norm, or one that is not an affine map.

    Example:
      >>> import nfllm
      >>> run = nfllm.load_run("runs/default")
      >>> batches = run.validation_batches(8, max_windows=8)
      >>> frozen = nfllm.freeze_norms(run, batches, with_losses=False)
      >>> fold(frozen.run).config.model.final_normalization
      'none'
    """
    model, params = fold_params(run.model.config, run.params)
    single = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    config = dataclasses.replace(run.config, model=model, removal=RemovalConfig())
    decoder = Decoder(model, run.model.vocab_size, run.model.dtype)
    return dataclasses.replace(run, model=decoder, params=single, config=config)


def fold_params(config: ModelConfig, params: Params) -> tuple[ModelConfig, Arrays]:
    """Config and parameters, float64, of the norm-free model; see `fold`."""
    names = norm_names(config)
    if FROZEN not in names.values():
        listed = ", ".join(f"{site}: {name}" for site, name in names.items())
        raise ConversionError(
            f"the model has no frozen norm to fold ({listed}); freeze them first: "
            "nfllm.freeze_norms, or python -m nfllm.freeze RUN OUT"
        )
    _check_matrices(config)
    tree: Arrays = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    changes: dict[str, Any] = {"frozen_first_position": False, "frozen_momentum": 0.9}
    changes |= {key: "none" for key in KEYS if getattr(config, key) == FROZEN}
    for name in stacks(config):
        block = tree[name]
        if names["attention"] == FROZEN:
            _fold_attention(block, f"{name}.attention_norm")
            changes["attention_bias"] = "all"
        if names["mlp"] == FROZEN and "mlp_norm" in block:
            _fold_mlp(config, block, f"{name}.mlp_norm")
            changes["mlp_bias"] = config.has_hidden_layers
    if config.final_normalization == FROZEN:
        scale, bias = affine(tree.pop("final_norm"), "final_norm")
        table_VD = tree["token_embedding" if config.ties_embeddings else "head_embedding"]
        head_bias_V = table_VD @ bias + tree.get("head_bias", 0.0)
        tree["head_embedding"] = _without_mean(table_VD * scale[0], axis=1)
        changes["tie_embeddings"] = False
        if np.any(head_bias_V):
            tree["head_bias"] = head_bias_V
            changes["head_bias"] = True
    return dataclasses.replace(config, **changes), tree


def _check_matrices(config: ModelConfig) -> None:
    """Raises ConversionError unless every norm is read by a matrix that can have a bias."""
    foldable: dict[Site, dict[str, tuple[object, ...]]] = {
        "attention": {"output_projection": ("dense",), "mixer": ("softmax",)},
        "mlp": {"mlp_weight_norm": ("none",)},
    }
    for site, keys in foldable.items():
        if config.normalization_at(site) != FROZEN:
            continue
        for key, values in {**keys, "weight_reparametrization": ("none",)}.items():
            if (value := getattr(config, key)) not in values:
                raise ConversionError(
                    f"the {site} norm cannot be folded with model.{key}={value!r}: that needs "
                    f"model.{key}={values[0]!r}"
                )


def affine(norm: Mapping[str, np.ndarray], where: str) -> tuple[np.ndarray, np.ndarray]:
    """Factor of the centred input, scale / sigma, [P, ..., D], and bias, [..., D].

    Raises:
      ConversionError: the norm is not frozen, or has a separate deviation for the first position.
    """
    gate, sigma = norm[GATE], norm[SIGMA]
    if np.any(gate != 0.0):
        raise ConversionError(
            f"{where} is not removed (gates {np.unique(gate).tolist()}): train to the end of the "
            "schedule, or freeze the remaining norms with nfllm.freeze_norms"
        )
    sigma = np.where(sigma > 0, sigma, 1.0)  # as `nfllm.model.frozen_norm.measured`, in float64
    if sigma.ndim > gate.ndim:
        if np.any(sigma[..., 0] != sigma[..., 1]):
            raise ConversionError(
                f"{where} has another deviation for the first position, which a matrix cannot "
                "express; end removal.order with first_position, or freeze without first_position"
            )
        sigma = sigma[..., 1]
    sigma_P = np.moveaxis(sigma, -1, 0)
    return norm["scale"] / sigma_P[..., None], norm["bias"]


def _fold_attention(block: Arrays, name: str) -> None:
    attention = block["attention"]
    scale_PLD, bias_LD = affine(block.pop("attention_norm"), name)
    for prefix, paths in _PATHS.items():
        if f"{prefix}_kernel" in attention:
            scale_LDC = np.stack([scale_PLD[path] for path in paths], axis=-1)
            _fold_heads(attention, prefix, scale_LDC, bias_LD)
    attention.setdefault("out_bias", np.zeros_like(bias_LD))


def _fold_heads(attention: Arrays, prefix: str, scale_LDC: np.ndarray, bias_LD: np.ndarray) -> None:
    kernel = attention[f"{prefix}_kernel"]
    kernel_LDCHK = kernel.reshape(*scale_LDC.shape, *kernel.shape[-2:])
    shift_LCHK = np.einsum("LD,LDCHK->LCHK", bias_LD, kernel_LDCHK)
    bias = shift_LCHK + _full_bias(attention, prefix, shift_LCHK.shape)
    folded = _without_mean(kernel_LDCHK * scale_LDC[..., None, None], axis=1)
    attention[f"{prefix}_kernel"] = folded.reshape(kernel.shape)
    attention[f"{prefix}_bias"] = bias.reshape(len(kernel), *kernel.shape[2:])


def _fold_mlp(config: ModelConfig, block: Arrays, name: str) -> None:
    scale_PLD, bias_LD = affine(block.pop("mlp_norm"), name)
    mlp = block["mlp"]
    reads = {"two_layer": ("in_",), "gated": ("in_", "gate_"), "fused": ("",)}[config.mlp]
    for prefix in reads:
        kernel_LDF = mlp[f"{prefix}kernel"]
        shift_LF = np.einsum("LD,LDF->LF", bias_LD, kernel_LDF)
        mlp[f"{prefix}kernel"] = _without_mean(kernel_LDF * scale_PLD[0][..., None], axis=1)
        if config.has_hidden_layers:
            mlp[f"{prefix}bias"] = shift_LF + mlp.get(f"{prefix}bias", 0.0)
        elif np.any(shift_LF):
            raise ConversionError(
                f"{name} has a bias, but model.mlp='fused' has no bias that could absorb it; train "
                "with a norm without bias, or with model.mlp='two_layer'"
            )
    if config.has_hidden_layers:
        mlp.setdefault("out_bias", np.zeros_like(bias_LD))


def _full_bias(attention: Arrays, prefix: str, shape: tuple[int, ...]) -> np.ndarray:
    """Bias of the heads, [L, C, H, K], zeros where the model has none; removes `qk_bias`."""
    bias = np.zeros(shape)
    if "qk_bias" in attention:  # only together with a `qkv_kernel`
        bias[:, :2] = attention.pop("qk_bias")
    return bias + np.reshape(attention.get(f"{prefix}_bias", bias * 0), shape)


def _without_mean(matrix: np.ndarray, axis: int) -> np.ndarray:
    """P times a matrix whose input axis is `axis`: a constant input then gives 0."""
    return matrix - matrix.mean(axis=axis, keepdims=True)
