"""The key-value cache: keys and values of earlier tokens, kept while text is generated.

    y_t = sum over s <= t of softmax_s(q_t · k_s / sqrt(K)) v_s

Keys and values of earlier positions do not depend on later tokens. So they are kept in the variable
collection `CACHE`, and a call gets only the new tokens:

    cache = empty_cache(config, batch_size)
    logits_BTV, new = model.apply({"params": params, CACHE: cache}, tokens_BT, mutable=[CACHE])
    cache = move(new[CACHE], start_B + T)

The cache has one slot for each position. Each sequence has its own `start`, the position of its
first new token; later slots are masked, and are overwritten when their positions are computed.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from nfllm.analysis import causal_mask
from nfllm.config import ConfigError, ModelConfig
from nfllm.model.layers import split_layers
from nfllm.model.parameters import Variables

CACHE = "cache"


def empty_cache(config: ModelConfig, batch_size: int, dtype: jnp.dtype = jnp.float32) -> Variables:
    """A cache of `config.context_length` positions for every sequence; all start at 0.

    Raises:
      ConfigError: the model keeps no keys and values.
    """
    if not config.has_attention_maps:
        raise ConfigError(
            f"model.mixer={config.mixer!r} keeps no keys and values; run the whole text instead, "
            "as nfllm.generate does"
        )
    shape = (batch_size, config.context_length, config.kv_heads, config.head_dim)
    keys = jnp.zeros((config.num_layers, *shape), dtype)
    cache = split_layers(config, {"attention": {"keys": keys, "values": keys}})
    if config.frozen_first_position:  # norms need to know which token is at position 0
        for stack in cache:
            cache[stack] |= {"attention_norm": {}, "mlp_norm": {}}
        cache["final_norm"] = {}
    return move(cache, jnp.zeros(batch_size, jnp.int32))


def move(cache: Variables, start_B: jax.Array) -> Variables:
    """The cache, with the next tokens of each sequence at positions `start_B` and on."""
    moved: Variables = {"start": start_B}
    if "final_norm" in cache:
        moved["final_norm"] = {"start": start_B}
    for stack in cache.keys() - moved.keys():
        depth = len(cache[stack]["attention"]["keys"])
        start_LB = jnp.broadcast_to(start_B[None], (depth, *start_B.shape))
        moved[stack] = {name: {**x, "start": start_LB} for name, x in cache[stack].items()}
    return moved


def start_of(module: nn.Module) -> jax.Array | None:
    """Position of the first token of each sequence in this call, [B]; None if all are at 0."""
    return module.get_variable(CACHE, "start", None)


def positions(length: int, start_B: jax.Array | None) -> jax.Array:
    """Positions of the tokens of this call: [1, T], or [B, T] with a cache."""
    steps_1T = jnp.arange(length)[None]
    return steps_1T if start_B is None else start_B[:, None] + steps_1T


def with_earlier(
    module: nn.Module, start_B: jax.Array, k_BTHK: jax.Array, v_BTHK: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Stores keys and values of this call, and returns those of all positions, [B, S, G, K]."""

    def extended(name: str, new_BTHK: jax.Array) -> jax.Array:
        kept_BSHK: jax.Array = module.get_variable(CACHE, name)

        def put(kept: jax.Array, new: jax.Array, at: jax.Array) -> jax.Array:
            zero = jnp.zeros_like(at)  # of the type of `at`, whatever JAX's default is
            return jax.lax.dynamic_update_slice(kept, new, (at, zero, zero))

        write = jax.vmap(put)
        kept_BSHK = write(kept_BSHK, new_BTHK.astype(kept_BSHK.dtype), start_B)
        module.put_variable(CACHE, name, kept_BSHK)
        return kept_BSHK

    return extended("keys", k_BTHK), extended("values", v_BTHK)


def visible_keys(queries: int, keys: int, start_B: jax.Array | None) -> jax.Array:
    """The keys that each query may see, [1, 1, T, S], or [B, 1, T, S] with a cache.

    Without a cache the queries are the last T of the S positions.
    """
    if start_B is None:
        return causal_mask(queries, keys)[None, None]
    position_B1T1 = positions(queries, start_B)[:, None, :, None]
    return jnp.arange(keys)[None, None, None] <= position_B1T1
