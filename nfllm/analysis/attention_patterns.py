"""Where attention goes: the first key, the last keys, the previous token, induction.

Each score is the mean, over the queries for which it means something, of the probability mass on
the keys in question, `[..., H, T, S]` -> `[..., H]`, between 0 and 1. Queries are aligned to the
last key: the own key of query t is `t + (S - T)`. NaN in a counted row gives NaN.
"""

import jax
import jax.numpy as jnp

from nfllm.analysis.arrays import Arrays, as_array, as_float32, check_axes, masked_mean


def sink_score(probs: Arrays) -> jax.Array:
    """Mass on the first key, over the queries that see another key as well (attention sink).

    See Xiao et al., arXiv 2309.17453, and Gu et al., arXiv 2410.10781. Uniform causal attention
    scores mean(1/n) over n = 2 .. T.

    Args:
      probs: `[..., H, T, S]` causal attention probabilities.

    Returns:
      `[..., H]` float32, a share of the mass; NaN where T = S = 1.

    Example:
      >>> sink_score([[[1.0, 0.0, 0.0], [0.75, 0.25, 0.0], [0.25, 0.25, 0.5]]])
      Array([0.5], dtype=float32)
    """
    probs = _read(probs)
    own = _own_key(probs)
    return _mean_mass(probs, jnp.arange(probs.shape[-1]) == 0, own >= 1)


def last_keys_mass(probs: Arrays, num_keys: int) -> jax.Array:
    """Mass on the last `num_keys` visible keys, the query's own among them.

    Only queries that see more keys than these are counted.

    Args:
      probs: `[..., H, T, S]` causal attention probabilities.
      num_keys: Width b of the window.

    Returns:
      `[..., H]` float32, a share of the mass; NaN where no query sees more than b keys.

    Raises:
      ValueError: `num_keys` is below 1.

    Example:
      >>> last_keys_mass([[[1.0, 0.0, 0.0], [0.75, 0.25, 0.0], [0.25, 0.25, 0.5]]], 2)
      Array([0.75], dtype=float32)
    """
    if num_keys < 1:
        raise ValueError(f"num_keys must be at least 1, got {num_keys}")
    probs = _read(probs)
    own = _own_key(probs)
    distance = own[:, None] - jnp.arange(probs.shape[-1])[None, :]
    return _mean_mass(probs, (distance >= 0) & (distance < num_keys), own >= num_keys)


def previous_token_score(probs: Arrays) -> jax.Array:
    """Mass on the key just before the query's own, over the queries that have one.

    Args:
      probs: `[..., H, T, S]` causal attention probabilities.

    Returns:
      `[..., H]` float32, a share of the mass; NaN where T = S = 1.

    Example:
      >>> previous_token_score([[[1.0, 0.0, 0.0], [0.75, 0.25, 0.0], [0.25, 0.25, 0.5]]])
      Array([0.5], dtype=float32)
    """
    probs = _read(probs)
    own = _own_key(probs)
    previous = own[:, None] - 1 == jnp.arange(probs.shape[-1])[None, :]
    return _mean_mass(probs, previous, own >= 1)


def induction_score(probs: Arrays, tokens_BT: Arrays) -> jax.Array:
    """Mass on the keys that follow an earlier occurrence of the query's token.

    An induction head (Olsson et al., arXiv 2209.11895) at token A attends to what followed A
    earlier. Only queries whose token occurred before are counted.

    Args:
      probs: `[..., B, H, T, T]` causal attention probabilities.
      tokens_BT: `[B, T]` token ids.

    Returns:
      `[..., B, H]` float32, a share of the mass; NaN for a sequence in which no token occurs twice.

    Raises:
      ValueError: Shapes that do not belong together.

    Example:
      >>> probs = [[[[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.1, 0.8, 0.1]]]]
      >>> induction_score(probs, [[7, 4, 7]])  # the second 7 looks at what followed the first
      Array([[0.8]], dtype=float32)
    """
    probs, tokens = _read(probs), as_array(tokens_BT)
    check_axes("probs", probs, "... B H T S")
    check_axes("tokens_BT", tokens, "B T")
    batch, length = tokens.shape
    if (probs.shape[-4], *probs.shape[-2:]) != (batch, length, length):
        raise ValueError(
            f"probs and tokens_BT: expected [..., B, H, T, T] and [B, T], got {probs.shape} and "
            f"{tokens.shape}"
        )
    repeats_BTS = earlier_occurrences(tokens)
    targets_BTS = jnp.pad(repeats_BTS, [(0, 0), (0, 0), (1, 0)])[:, :, :-1]
    return _mean_mass(probs, targets_BTS[:, None], jnp.any(repeats_BTS, axis=-1)[:, None])


def earlier_occurrences(tokens_BT: jax.Array) -> jax.Array:
    """Whether the token of query t also stands at key s < t, [B, T, S]."""
    earlier_1TS = jnp.tri(tokens_BT.shape[1], k=-1, dtype=bool)[None]
    return (tokens_BT[:, :, None] == tokens_BT[:, None, :]) & earlier_1TS


def _read(probs: Arrays) -> jax.Array:
    probs = as_float32(probs)
    check_axes("probs", probs, "... H T S")
    if probs.shape[-2] > probs.shape[-1]:
        raise ValueError(
            f"probs: expected shape [..., H, T, S] of causal attention, with at least as many keys "
            f"S as queries T, got {probs.shape}"
        )
    return probs


def _own_key(probs: jax.Array) -> jax.Array:
    num_queries, num_keys = probs.shape[-2:]
    return jnp.arange(num_queries) + (num_keys - num_queries)


@jax.jit
def _mean_mass(probs: jax.Array, keys: jax.Array, counted: jax.Array) -> jax.Array:
    """Mass on `keys` (broadcast to `probs`), averaged over the queries `counted`."""
    mass = jnp.sum(probs, axis=-1, where=jnp.broadcast_to(keys, probs.shape))
    has_nan = jnp.any(jnp.isnan(probs), axis=-1)
    return masked_mean(jnp.where(has_nan, jnp.nan, mass), counted)
