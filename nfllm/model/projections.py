"""Queries, keys, values and output of attention, and products of heads that share keys and values.

With G < H heads of keys and values (`model.num_kv_heads`; grouped queries, arXiv 2305.13245; G = 1:
multi-query attention, arXiv 1911.02150), query head h reads those of head h // (H / G).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from nfllm.config import ModelConfig
from nfllm.model.bias import add_bias
from nfllm.model.parameters import Start, constant_param, params_of_one_key
from nfllm.model.shaping import beside_identity
from nfllm.model.weight_norm import attention_kernel


def project(
    attention: nn.Module,
    config: ModelConfig,
    x_BTD: jax.Array,
    value_in_BTD: jax.Array | None,
    dtype: jnp.dtype,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries [B, T, H, K], and keys and values [B, T, G, K]; `attention` gets the parameters.

    Values are projected from `value_in_BTD` if it is given, queries and keys always from `x_BTD`.
    """
    if config.groups_heads:
        return _project_groups(attention, config, x_BTD, value_in_BTD, dtype)
    heads = (config.num_heads, config.head_dim)
    has_value = config.value_projection != "none"
    name = "qkv_kernel" if has_value else "qk_kernel"
    parts = 3 if has_value else 2

    def start(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return _first_projections(config, key)[:, : shape[1]]

    kernel: jax.Array = attention.param(name, start, (config.embed_dim, parts, *heads))
    kernel = attention_kernel(attention, config, name, kernel).astype(dtype)
    if value_in_BTD is None:
        qkv = jnp.einsum("BTD,DCHK->CBTHK", x_BTD, kernel)
    else:
        qk = jnp.einsum("BTD,DCHK->CBTHK", x_BTD, kernel[:, :2])
        value = jnp.einsum("BTD,DCHK->CBTHK", value_in_BTD, kernel[:, 2:])
        qkv = jnp.concatenate([qk, value])
    if config.attention_bias == "all":
        bias = constant_param(attention, "qkv_bias", 0.0, (3, *heads))
        qkv = add_bias(qkv, bias[:, None, None])
    same_BTHK = x_BTD.reshape(*x_BTD.shape[:2], *heads)
    q, k, v = qkv if has_value else (*qkv, same_BTHK)
    if config.attention_bias == "qk":
        bias = constant_param(attention, "qk_bias", 0.0, (2, *heads))
        q, k = add_bias(q, bias[0]), add_bias(k, bias[1])
    if config.value_projection == "identity_residual":
        v = beside_identity(attention, "value", same_BTHK, v)
    return q, k, v


def _project_groups(
    attention: nn.Module,
    config: ModelConfig,
    x_BTD: jax.Array,
    value_in_BTD: jax.Array | None,
    dtype: jnp.dtype,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The same with `q_kernel` [D, H, K] and `kv_kernel` [D, 2, G, K], and a bias for each."""
    every = config.num_heads // config.kv_heads
    starts: dict[str, Start] = {
        "q_kernel": lambda key: _first_projections(config, key)[:, 0],
        "kv_kernel": lambda key: _first_projections(config, key)[:, 1:, ::every],
    }
    kernels = params_of_one_key(attention, starts)
    # `attention_kernel` expects an axis of several matrices.
    q_kernel = attention_kernel(attention, config, "q_kernel", kernels["q_kernel"][:, None])
    kv_kernel = attention_kernel(attention, config, "kv_kernel", kernels["kv_kernel"])
    q = jnp.einsum("BTD,DHK->BTHK", x_BTD, q_kernel[:, 0].astype(dtype))
    kv_kernel = kv_kernel.astype(dtype)
    if value_in_BTD is None:
        kv = jnp.einsum("BTD,DCGK->CBTGK", x_BTD, kv_kernel)
    else:
        of_each = zip((x_BTD, value_in_BTD), jnp.moveaxis(kv_kernel, 1, 0), strict=True)
        kv = jnp.stack([jnp.einsum("BTD,DGK->BTGK", x, kernel) for x, kernel in of_each])
    if config.attention_bias == "all":
        q = add_bias(q, constant_param(attention, "q_bias", 0.0, q.shape[2:]))
        bias = constant_param(attention, "kv_bias", 0.0, (2, *kv.shape[3:]))
        kv = add_bias(kv, bias[:, None, None])
    return q, kv[0], kv[1]


def _first_projections(config: ModelConfig, key: jax.Array) -> jax.Array:
    """Initial query, key and value matrices, [D, 3, H, K], also if the model has only some."""
    shape = (config.embed_dim, 3, config.num_heads, config.head_dim)
    kernel = nn.initializers.normal(config.block_init_std)(key, shape)
    if (ratio := config.first_query_std / config.block_init_std) != 1:
        kernel = kernel.at[:, 0].multiply(ratio)
    return kernel


def join_heads(
    attention: nn.Module, config: ModelConfig, mixed_BTHK: jax.Array, dtype: jnp.dtype
) -> jax.Array:
    """The output [B, T, D] of the heads [B, T, H, K]; `attention` gets the parameters."""
    if config.head_gains:
        gain_H1 = constant_param(attention, "head_gain", 1.0, (config.num_heads,))[:, None]
        mixed_BTHK = (gain_H1[None, None] * mixed_BTHK.astype(jnp.float32)).astype(dtype)
    joined_BTD = mixed_BTHK.reshape(*mixed_BTHK.shape[:2], -1)
    if config.output_projection == "none":
        if attention.is_initializing():
            attention.make_rng("params")  # as the matrix would, so that the others start the same
        return joined_BTD
    init = nn.initializers.normal(config.residual_init_std)
    shape = (config.num_heads, config.head_dim, config.embed_dim)
    kernel = attention_kernel(
        attention, config, "out_kernel", attention.param("out_kernel", init, shape)
    )
    y_BTD = jnp.einsum("BTHK,HKD->BTD", mixed_BTHK, kernel.astype(dtype))
    if config.attention_bias == "all":
        bias = constant_param(attention, "out_bias", 0.0, (config.embed_dim,))
        y_BTD = add_bias(y_BTD, bias)
    if config.output_projection == "identity_residual":
        y_BTD = beside_identity(attention, "output", joined_BTD, y_BTD)
    return y_BTD


def scores(
    product: Callable[[str, jax.Array, jax.Array], jax.Array], q_BTHK: jax.Array, k_BSGK: jax.Array
) -> jax.Array:
    """Scores q · k of every query head, [B, H, T, S], by an einsum of two operands."""
    num_groups = k_BSGK.shape[2]
    if q_BTHK.shape[2] == num_groups:
        return product("BTHK,BSHK->BHTS", q_BTHK, k_BSGK)
    batch, length, _, width = q_BTHK.shape
    q_BTGRK = q_BTHK.reshape(batch, length, num_groups, -1, width)
    scores_BGRTS = product("BTGRK,BSGK->BGRTS", q_BTGRK, k_BSGK)
    return scores_BGRTS.reshape(batch, -1, length, k_BSGK.shape[1])


def mix_values(map_BHTS: jax.Array, v_BSGK: jax.Array) -> jax.Array:
    """The values of each query head, mixed by its weights `map_BHTS`, [B, T, H, K]."""
    num_groups = v_BSGK.shape[2]
    if map_BHTS.shape[1] == num_groups:
        return jnp.einsum("BHTS,BSHK->BTHK", map_BHTS, v_BSGK)
    batch, _, length, num_keys = map_BHTS.shape
    map_BGRTS = map_BHTS.reshape(batch, num_groups, -1, length, num_keys)
    mixed_BTGRK = jnp.einsum("BGRTS,BSGK->BTGRK", map_BGRTS, v_BSGK)
    return mixed_BTGRK.reshape(batch, length, -1, v_BSGK.shape[-1])
