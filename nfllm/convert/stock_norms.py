"""Frozen and norm-free models as a standard GPT-2, in which every norm is a LayerNorm.

With a large epsilon, LayerNorm divides by sqrt(var + epsilon) = sqrt(epsilon) whatever its input
is: it is frozen, and its weight includes the factor sqrt(epsilon) / sigma. Frozen models are
written in this form, and checkpoints of this form are read as frozen models. arXiv 2507.02559 has
an epsilon of 1e12, with which the norm of a stream of rms 30,000 is off by 4e-4; here it is 1e20.

Such a LayerNorm still subtracts the mean, which a norm-free model does not. So a norm-free model is
written with twice the width: its stream is (x, -x), whose mean is 0. Matrices that read the stream
become (W, -W) / 2, matrices that write to it (W, -W). Heads have 2 K features, of which the last K
are 0, and queries have a factor of sqrt 2 because of the softmax's sqrt(2 K).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from nfllm.config import ConfigError, ModelConfig
from nfllm.config.names import FROZEN
from nfllm.convert.fold import affine, fold_params
from nfllm.convert.foreign import LAYERNORM, check_form
from nfllm.convert.shared import full_qkv_bias, layer_bias
from nfllm.model.frozen_norm import GATE, SIGMA
from nfllm.model.norm_sites import norm_names

Arrays = dict[str, Any]

EPSILON = 1e20
_LEAST_FROZEN = 1e10
"""Above this epsilon the variance of a stream, at most some 10,000, has no influence."""


def read_frozen(config: ModelConfig, params: Arrays) -> tuple[ModelConfig, Arrays]:
    """A checkpoint's model with frozen norms if its epsilon freezes them, else unchanged.

    The deviation is sqrt(epsilon): a checkpoint has only the ratio of weight and true deviation.
    """
    if config.norm_epsilon < _LEAST_FROZEN or config.normalization != "layernorm":
        return config, params
    sigma = np.float32(np.sqrt(config.norm_epsilon))
    blocks = dict(params["blocks"])
    for name, paths in (("attention_norm", 2), ("mlp_norm", 1)):
        shape = (config.num_layers, paths)
        blocks[name] = _frozen(blocks[name], shape, sigma)
    final = _frozen(params["final_norm"], (1,), sigma)
    frozen = dataclasses.replace(
        config, normalization=FROZEN, final_normalization=FROZEN, norm_epsilon=1e-5
    )
    return frozen, {**params, "blocks": blocks, "final_norm": final}


def stock_form(config: ModelConfig, params: Arrays) -> tuple[ModelConfig, Arrays]:
    """An equivalent model in which every norm is a LayerNorm; models with real norms are unchanged.

    Raises:
      ConfigError: some norms are real and some are not, or the model has no norms and is not a
        gpt2.
      ConversionError: a frozen norm is not removed, or treats the first position differently.
    """
    names = norm_names(config)
    if config.architecture == "llama" or not set(names.values()) & {"none", FROZEN}:
        if len(set(names.values())) == 1:  # the same, named by one key
            own: dict[str, Any] = dict.fromkeys(("attention_normalization", "mlp_normalization"))
            config = dataclasses.replace(config, normalization=names["final"], **own)
        return config, params  # a Llama has no LayerNorm: an error follows if it has none at all
    # Everything must be expressible but the norms, and the head's bias that folding one gives.
    all_frozen = set(names.values()) == {FROZEN}
    stock = _stock_config(config, head_bias=all_frozen and config.head_bias)
    check_form(stock, some=LAYERNORM)
    if all_frozen:
        return _with_epsilon(config, params)
    for site, name in names.items():
        if name not in ("none", FROZEN):
            remedy = (
                "; freeze it too: python -m nfllm.freeze RUN OUT" if name == "layernorm" else ""
            )
            raise ConfigError(
                f"the {site} normalization {name!r} cannot be expressed beside norms that are "
                f"removed: in transformers these need layer_norm_epsilon={EPSILON:g}, which holds "
                f"for all norms{remedy}"
            )
    if config.architecture != "gpt2":
        raise ConfigError(
            f"model.architecture={config.architecture!r} without norms cannot be expressed in "
            "transformers; only 'gpt2' can, at twice the width"
        )
    if FROZEN in names.values():
        config, params = fold_params(config, params)
    return _doubled(config, params)


def _frozen(norm: Arrays, gates: tuple[int, ...], sigma: np.float32) -> Arrays:
    return {**norm, GATE: np.zeros(gates, np.float32), SIGMA: np.full(gates, sigma)}


def _with_epsilon(config: ModelConfig, params: Arrays) -> tuple[ModelConfig, Arrays]:
    """Multiplies weights by sqrt(epsilon) / sigma; that of values may differ: it scales W_v."""
    factor, blocks = np.sqrt(EPSILON), dict(params["blocks"])
    attention = dict(blocks["attention"])
    scale_PLD, bias_LD = affine(blocks["attention_norm"], "blocks.attention_norm")
    ratio_LD = scale_PLD[1] / np.where(scale_PLD[0] == 0, 1.0, scale_PLD[0])
    kernel = np.array(attention["qkv_kernel"], np.float64)
    values_LDHK = kernel[:, :, 2].copy()
    kernel[:, :, 2] *= ratio_LD[:, :, None, None]
    bias = np.array(full_qkv_bias(attention, config), np.float64)
    bias[:, 2] += np.einsum("LD,LDHK->LHK", bias_LD, values_LDHK - kernel[:, :, 2])
    attention.pop("qk_bias", None)
    attention |= {"qkv_kernel": kernel, "qkv_bias": bias}
    mlp_scale_PLD, mlp_bias_LD = affine(blocks["mlp_norm"], "blocks.mlp_norm")
    final_scale_PD, final_bias_D = affine(params["final_norm"], "final_norm")
    blocks |= {
        "attention": attention,
        "attention_norm": {"scale": factor * scale_PLD[0], "bias": bias_LD},
        "mlp_norm": {"scale": factor * mlp_scale_PLD[0], "bias": mlp_bias_LD},
    }
    final = {"scale": factor * final_scale_PD[0], "bias": final_bias_D}
    stock = _stock_config(config, attention_bias="all")
    return stock, _float32({**params, "blocks": blocks, "final_norm": final})


def _doubled(config: ModelConfig, params: Arrays) -> tuple[ModelConfig, Arrays]:
    depth, width, hidden = config.num_layers, config.embed_dim, config.mlp_width
    attention, mlp = params["blocks"]["attention"], params["blocks"]["mlp"]
    factor = np.sqrt(EPSILON)

    def writes(x: np.ndarray) -> np.ndarray:
        return np.concatenate([x, -x], axis=-1)

    def reads(x: np.ndarray) -> np.ndarray:  # its inputs lie on axis 1
        return np.concatenate([x, -x], axis=1) / 2

    def heads(x: np.ndarray) -> np.ndarray:  # queries, keys, values lie on axis -3
        widened = np.concatenate([x, np.zeros_like(x)], axis=-1)
        widened[..., 0, :, :] *= np.sqrt(2.0)
        return widened

    out_LHKD = np.asarray(attention["out_kernel"], np.float64)
    blocks = {
        "attention_norm": _layernorm((depth, 2 * width), factor),
        "mlp_norm": _layernorm((depth, 2 * width), factor),
        "attention": {
            "qkv_kernel": heads(reads(np.asarray(attention["qkv_kernel"], np.float64))),
            "qkv_bias": heads(np.asarray(full_qkv_bias(attention, config), np.float64)),
            "out_kernel": writes(np.concatenate([out_LHKD, np.zeros_like(out_LHKD)], axis=2)),
            "out_bias": writes(layer_bias(attention, "out_bias", depth, width)),
        },
        "mlp": {
            "in_kernel": reads(np.asarray(mlp["in_kernel"], np.float64)),
            "in_bias": layer_bias(mlp, "in_bias", depth, hidden),
            "out_kernel": writes(mlp["out_kernel"]),
            "out_bias": writes(layer_bias(mlp, "out_bias", depth, width)),
        },
    }
    doubled: Arrays = {
        "token_embedding": writes(params["token_embedding"]),
        "position_embedding": writes(params["position_embedding"]),
        "blocks": blocks,
        "final_norm": _layernorm((2 * width,), factor / 2),  # the tied head reads (x, -x) / 2
    }
    if not config.ties_embeddings:
        doubled["head_embedding"] = writes(params["head_embedding"])
    if config.head_bias:
        # Added to one feature in both halves of the embedding, it cancels for (x, -x), but not for
        # a norm bias of 1/2 in both.
        table = np.array(doubled.get("head_embedding", doubled["token_embedding"]), np.float64)
        table[:, [0, width]] += params["head_bias"][:, None]
        doubled["head_embedding"] = table
        doubled["final_norm"]["bias"][[0, width]] = 0.5
    stock = _stock_config(
        config,
        attention_bias="all",
        mlp_bias=True,
        embed_dim=2 * width,
        mlp_dim=hidden,
        head_bias=False,
        tie_embeddings="head_embedding" not in doubled,
    )
    return stock, _float32(doubled)


def _stock_config(config: ModelConfig, **changes: Any) -> ModelConfig:
    return dataclasses.replace(
        config,
        normalization="layernorm",
        attention_normalization=None,
        mlp_normalization=None,
        final_normalization="layernorm",
        norm_epsilon=EPSILON,
        frozen_first_position=False,
        frozen_momentum=0.9,
        **changes,
    )


def _layernorm(shape: tuple[int, ...], weight: float) -> Arrays:
    return {"scale": np.full(shape, weight), "bias": np.zeros(shape)}


def _float32(params: Arrays) -> Arrays:
    return jax.tree.map(lambda x: np.asarray(x, np.float32), params)
