r"""Entropy of attention without probabilities, in one pass over blocks of keys.

With running maximum m of the scores seen so far, :math:`l = \sum_s e^{s-m}` and
:math:`u = \sum_s e^{s-m}(s-m)`, the entropy of the softmax is

.. math:: H = \ln l - u / l

and a block of new scores, with new maximum m' and :math:`a = e^{m-m'}`, is absorbed by

.. math:: l' = a\,l + \sum e^{s-m'}, \qquad u' = a\,(u + (m-m')\,l) + \sum e^{s-m'}(s-m')

(the softmax recurrence of Milakov & Gimelshein, arXiv 1805.02867, with a second sum). Memory is
O(T x block) and never O(T x S). H does not change when m does, so no gradient flows through m, and
every gradient is finite however many keys are masked.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from nfllm.analysis.arrays import Arrays, as_array, as_float32, check_axes, check_mask


class _Sums(NamedTuple):
    """The running sums of one row, each `[..., T]` float32."""

    maximum: jax.Array
    weight: jax.Array
    weighted_score: jax.Array


def attention_entropy_from_logits(
    logits: Arrays,
    *,
    mask: ArrayLike | None = None,
    causal: bool = False,
    block_size: int = 128,
) -> jax.Array:
    r"""Entropy of `softmax(logits)` for every query, without forming the probabilities.

    .. math:: H = \ln l - \frac{u}{l}, \qquad l = \sum_s e^{z_s - m}, \qquad
        u = \sum_s e^{z_s - m} (z_s - m)

    with m the largest logit z, in one pass over blocks of keys: the recurrence of Milakov &
    Gimelshein (arXiv 1805.02867) with the second sum u.

    Equals `attention_entropy(softmax(logits))` to 1e-5 nats for up to some 10,000 keys, and is more
    exact for more; it is computed in float32 whatever the type of the logits. NaN or +Inf at a
    visible key gives NaN; -Inf hides a key.

    Args:
      logits: `[..., H, T, S]`, scaled as the softmax sees them. They may be masked already, with
        -Inf or the type's most negative finite number; if all keys of a query have the latter, it
        attends to them alike, as after softmax.
      mask: Booleans `[..., T, S]` that broadcast to `logits` (their last axis has length S); True
        where the query sees the key.
      causal: Whether query t sees only the keys `s <= t + (S - T)`.
      block_size: Number of keys a step; temporaries are `[..., H, T, block_size]`.

    Returns:
      `[..., H, T]` float32, in nats; NaN for a query that sees no key.

    Raises:
      ValueError: Wrong rank, a mask that does not fit, or a block size below 1.

    Example:
      >>> attention_entropy_from_logits(jnp.zeros((1, 3, 3)), causal=True).round(4)
      Array([[0.    , 0.6931, 1.0986]], dtype=float32)
    """
    logits = as_array(logits)
    check_axes("logits", logits, "... H T S")
    mask = check_mask(mask, logits.shape)
    return _from_logits(logits, mask, causal, _check_block(block_size, logits.shape[-1]))


def attention_entropy_from_qk(
    q_BHTK: Arrays,
    k_BHSK: Arrays,
    *,
    scale: float | None = None,
    mask: ArrayLike | None = None,
    causal: bool = True,
    block_size: int = 128,
) -> jax.Array:
    r"""Entropy of attention for every query; neither logits nor probabilities are formed.

    .. math:: H_t = -\sum_s p_{ts} \ln p_{ts}, \qquad
        p_t = \mathrm{softmax}_s(\mathrm{scale} \; q_t \cdot k_s)

    Scores are summed in float32 at the highest matrix precision of the device, also for bfloat16
    queries and keys, which gives the entropy to 1e-5 nats. The backward pass computes each block
    again instead of keeping it.

    Args:
      q_BHTK: `[..., H, T, K]` queries, after rotary embedding where there is one.
      k_BHSK: `[..., H, S, K]` keys, or `[..., G, S, K]` of G heads where H = G x n: n consecutive
        query heads share a key head (grouped and multi-query attention).
      scale: Factor on the scores; `1 / sqrt(K)` by default.
      mask: Booleans `[..., T, S]`, as for `attention_entropy_from_logits`.
      causal: Whether query t sees only the keys `s <= t + (S - T)`.
      block_size: Number of keys a step; the largest temporary is `[..., H, T, block_size]`.

    Returns:
      `[..., H, T]` float32, in nats; NaN for a query that sees no key.

    Raises:
      ValueError: Wrong rank, shapes of q and k that do not belong together, a mask that does not
        fit, or a block size below 1.

    Example:
      >>> q = k = jnp.zeros((1, 3, 4))  # [H, T, K]
      >>> attention_entropy_from_qk(q, k).round(4)
      Array([[0.    , 0.6931, 1.0986]], dtype=float32)
    """
    q, k = _as_floats(q_BHTK), _as_floats(k_BHSK)
    check_axes("q", q, "... H T K")
    check_axes("k", k, "... H S K")
    if q.shape[:-3] != k.shape[:-3] or q.shape[-1] != k.shape[-1] or q.ndim != k.ndim:
        raise ValueError(
            "q and k: expected [..., H, T, K] and [..., H, S, K] that differ in T and S, and in "
            f"the number of heads, at most, got {q.shape} and {k.shape}"
        )
    num_heads, num_key_heads = q.shape[-3], k.shape[-3]
    if num_heads % num_key_heads:
        raise ValueError(
            f"q has {num_heads} heads, which must be a multiple of the {num_key_heads} heads of k; "
            f"are the axes [..., H, T, K]? got {q.shape} and {k.shape}"
        )
    mask = check_mask(mask, (*q.shape[:-1], k.shape[-2]))
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    block = _check_block(block_size, k.shape[-2])
    return _from_qk(q, k, jnp.asarray(scale, jnp.float32), mask, causal, block)


def _as_floats(x: Arrays) -> jax.Array:
    """`as_array`, with integers as float32."""
    array = as_array(x)
    return as_float32(array) if jnp.issubdtype(array.dtype, jnp.integer) else array


def _check_block(block_size: int, num_keys: int) -> int:
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    return min(block_size, num_keys)


@functools.partial(jax.jit, static_argnames=("causal", "block"))
def _from_logits(logits: jax.Array, mask: jax.Array | None, causal: bool, block: int) -> jax.Array:
    def scores_of(start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(logits, start, block, axis=-1).astype(jnp.float32)

    return _stream(scores_of, logits.shape, mask, causal, block)


@functools.partial(jax.jit, static_argnames=("causal", "block"))
def _from_qk(
    q: jax.Array,
    k: jax.Array,
    scale: jax.Array,
    mask: jax.Array | None,
    causal: bool,
    block: int,
) -> jax.Array:
    def scores_of(start: jax.Array) -> jax.Array:
        keys = jax.lax.dynamic_slice_in_dim(k, start, block, axis=-2)
        scores = jnp.einsum(
            "...gntk,...gsk->...gnts",
            q.reshape(*q.shape[:-3], k.shape[-3], -1, *q.shape[-2:]),
            keys,
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )
        return scores.reshape(*q.shape[:-1], block) * scale

    return _stream(scores_of, (*q.shape[:-1], k.shape[-2]), mask, causal, block)


def _stream(
    scores_of: Callable[[jax.Array], jax.Array],
    shape: tuple[int, ...],
    mask: jax.Array | None,
    causal: bool,
    block: int,
) -> jax.Array:
    """Entropy `[..., H, T]` from a function that gives the scores of the keys from `start` on."""
    num_queries, num_keys = shape[-2:]

    def hide(scores: jax.Array, visible: jax.Array) -> jax.Array:
        return jnp.where(jnp.broadcast_to(visible, scores.shape), scores, -jnp.inf)

    def sums_of_block(first_new: jax.Array) -> _Sums:
        # The last block is moved back to end at the last key; the keys it shares with the block
        # before it are hidden, so that none is counted twice.
        start = jnp.minimum(first_new, num_keys - block)
        keys = start + jnp.arange(block)
        scores = scores_of(start)
        if num_keys % block:
            scores = hide(scores, keys >= first_new)
        if causal:
            last_visible = jnp.arange(num_queries) + (num_keys - num_queries)
            scores = hide(scores, keys[None, :] <= last_visible[:, None])
        if mask is not None:
            scores = hide(scores, jax.lax.dynamic_slice_in_dim(mask, start, block, axis=-1))
        return _sums_of(scores)

    if block == num_keys:
        sums = sums_of_block(jnp.zeros((), jnp.int32))
    else:
        zero = jnp.zeros(shape[:-1], jnp.float32)
        starts = jnp.arange(0, num_keys, block, dtype=jnp.int32)
        step = jax.checkpoint(lambda sums, start: (_combine(sums, sums_of_block(start)), None))
        sums, _ = jax.lax.scan(step, _Sums(zero - jnp.inf, zero, zero), starts)
    no_key = sums.weight == 0
    weight = jnp.where(no_key, 1.0, sums.weight)
    return jnp.where(no_key, jnp.nan, jnp.log(weight) - sums.weighted_score / weight)


def _sums_of(scores: jax.Array) -> _Sums:
    """The sums of one block of scores `[..., T, block]`, of which -Inf are hidden."""
    maximum = jax.lax.stop_gradient(jnp.max(scores, axis=-1))
    distance = _bounded(scores - _reference(maximum)[..., None])
    weights = jnp.exp(distance)
    return _Sums(maximum, jnp.sum(weights, axis=-1), jnp.sum(weights * distance, axis=-1))


def _combine(a: _Sums, b: _Sums) -> _Sums:
    """The sums of two blocks together."""
    maximum = jnp.maximum(a.maximum, b.maximum)
    weight, weighted_score = jnp.zeros_like(maximum), jnp.zeros_like(maximum)
    for sums in (a, b):
        shift = _bounded(sums.maximum - _reference(maximum))
        decay = jnp.exp(shift)
        weight += decay * sums.weight
        weighted_score += decay * (sums.weighted_score + shift * sums.weight)
    return _Sums(maximum, weight, weighted_score)


def _reference(maximum: jax.Array) -> jax.Array:
    """What is subtracted from scores: 0 for a query that sees no key, as -Inf - (-Inf) is NaN."""
    return jnp.where(maximum == -jnp.inf, 0.0, maximum)


def _bounded(x: jax.Array) -> jax.Array:
    """A logarithm of a weight that is at most 1, cut off where the weight is exactly 0 in float32.

    It turns the 0 x -Inf of a hidden key into 0 x -200, and stops its gradient.
    """
    return jnp.maximum(x, -200.0)
