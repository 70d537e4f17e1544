"""Entropy of attention, in nats, from probabilities.

Axes: L layers, B batch, H heads, T query position, S key position. There may be any axes before
the last three: `[H, T, S]` of one layer, `[B, H, T, S]` and `[L, B, H, T, S]` all work.

For logits, or for queries and keys whose probabilities would not fit in memory, see
`nfllm.analysis.online_entropy`.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from nfllm.analysis.arrays import (
    Arrays,
    as_array,
    as_booleans,
    as_float32,
    broadcasts_to,
    check_axes,
    is_concrete,
    masked_mean,
    visible_keys,
)


def attention_entropy(probs: Arrays, *, tolerance: float | None = None) -> jax.Array:
    r"""Entropy of every query's attention distribution.

    .. math:: H_t = -\sum_s p_{ts} \ln p_{ts}, \qquad 0 \ln 0 = 0

    Shannon's entropy (1948) of each row, as Zhai et al. (arXiv 2303.06296) and Jha & Reagen
    (arXiv 2410.09637) use it. It lies between 0 (one key has all the mass) and ln n (n keys are
    attended alike).

    A row that contains NaN has entropy NaN: counting NaN as zero would make a broken head look like
    a collapsed one. The gradient is finite; at p = 0, where the true derivative is infinite, it is
    0, as for a masked key.

    Args:
      probs: `[..., H, T, S]` attention probabilities, of any float type and any framework.
      tolerance: How far a row may be from a distribution. By default 1e-4, or what rounding to the
        input's float type can do if that is more: its relative spacing (0.0078 for bfloat16), and
        half its smallest number for each key (0.0015 for 50,000 in float16). `math.inf` skips the
        check.

    Returns:
      `[..., H, T]` float32, in nats.

    Raises:
      ValueError: `probs` has fewer than three axes, or (outside `jit`) a row without NaN does not
        sum to 1 or has a negative entry.

    Example:
      >>> uniform = np.tril(np.ones((1, 3, 3))) / np.array([[1.0], [2.0], [3.0]])  # [H, T, S]
      >>> attention_entropy(uniform).round(4)  # ln 1, ln 2, ln 3
      Array([[0.    , 0.6931, 1.0986]], dtype=float32)
    """
    probs = as_array(probs)
    check_axes("probs", probs, "... H T S")
    entropy, deviation = _entropy_and_deviation(probs)
    if is_concrete(probs, deviation):
        _check_distributions(probs, np.asarray(deviation), tolerance)
    return entropy


_RowSums = tuple[jax.Array, jax.Array, jax.Array]


@jax.jit
def _entropy_and_deviation(probs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Entropy and distance from a distribution of each row, over blocks of keys.

    Blocks keep temporaries at O(T x block), and keep the rounding error of the sum small: added up
    one by one, 4096 equal terms are off by 1e-4 nats.
    """
    num_keys = probs.shape[-1]
    block = min(num_keys, 128)

    def step(sums: _RowSums, first_new: jax.Array) -> tuple[_RowSums, None]:
        entropy, total, smallest = sums
        # The last block is moved back to end at the last key; the keys that it shares with the
        # block before it count as 0, which changes none of the sums.
        start = jnp.minimum(first_new, num_keys - block)
        p = jax.lax.dynamic_slice_in_dim(probs, start, block, axis=-1).astype(jnp.float32)
        p = jnp.where(jnp.broadcast_to(start + jnp.arange(block) >= first_new, p.shape), p, 0.0)
        # log is applied to 1 where p = 0, so that the gradient there is 0 and not NaN. A NaN or a
        # negative probability is not equal to 0 and comes out as NaN.
        entropy -= jnp.sum(p * jnp.log(jnp.where(p == 0, 1.0, p)), axis=-1)
        return (
            entropy,
            total + jnp.sum(p, axis=-1),
            jnp.minimum(smallest, jnp.min(p, axis=-1)),
        ), None

    zero = jnp.zeros(probs.shape[:-1], jnp.float32)
    starts = jnp.arange(0, num_keys, block, dtype=jnp.int32)
    (entropy, total, smallest), _ = jax.lax.scan(step, (zero, zero, zero), starts)
    return entropy, jax.lax.stop_gradient(jnp.maximum(jnp.abs(total - 1), -smallest))


def _check_distributions(probs: jax.Array, deviation: np.ndarray, tolerance: float | None) -> None:
    if tolerance is None:
        tolerance = 1e-4
        if jnp.issubdtype(probs.dtype, jnp.floating):
            spacing = jnp.finfo(probs.dtype)
            of_keys = probs.shape[-1] * float(spacing.smallest_subnormal) / 2
            tolerance = max(tolerance, float(spacing.eps) + of_keys)
    deviation = np.where(np.isnan(deviation), 0.0, deviation)
    if deviation.max() <= tolerance:
        return
    worst = tuple(int(i) for i in np.unravel_index(np.argmax(deviation), deviation.shape))
    row = np.asarray(probs[worst]).astype(np.float64)
    sums_to_one = [
        axis
        for axis in range(probs.ndim - 1)
        if jnp.allclose(jnp.sum(probs.astype(jnp.float32), axis=axis), 1, atol=tolerance)
    ]
    hint = (
        f"axis {sums_to_one[0]} does sum to 1: move it last"
        if sums_to_one
        else "pass probabilities after the softmax and before dropout, or use "
        "attention_entropy_from_logits for logits"
    )
    raise ValueError(
        f"probs {probs.shape}: the row at index {worst} of axes [..., H, T] is not a distribution "
        f"within {tolerance:.2g}: it sums to {row.sum():.6g} and its smallest entry is "
        f"{row.min():.3g}; {hint}"
    )


def head_entropy(entropy: Arrays, *, where: ArrayLike | None = None) -> jax.Array:
    """Entropy of each head: the mean over query positions, and over nothing else.

    The batch axis, if there is one, is kept: `[L, B, H, T]` gives `[L, B, H]`, one value a sequence
    (the unit to bootstrap over). The published heatmaps are the mean over sequences as well:
    `head_entropy(entropy_LBHT).mean(axis=1)` is `[L, H]`.

    Args:
      entropy: `[..., H, T]`, as `attention_entropy` returns it, in nats.
      where: Booleans of a shape that broadcasts to `entropy`, True for queries to count; False for
        padding, for example.

    Returns:
      `[..., H]` float32, in nats; NaN where a counted query is NaN, or where none is counted.

    Raises:
      ValueError: `entropy` has fewer than two axes, or `where` is not of booleans or does not
        broadcast to it.

    Example:
      >>> head_entropy([[0.0, 0.5, 1.0], [0.0, 0.0, 0.0]])
      Array([0.5, 0. ], dtype=float32)
    """
    entropy = as_float32(entropy)
    check_axes("entropy", entropy, "... H T")
    if where is None:
        return jnp.mean(entropy, axis=-1)
    counted = as_booleans("where", where)
    if not broadcasts_to(counted.shape, entropy.shape):
        raise ValueError(
            f"where: expected a shape that broadcasts to {entropy.shape}, got {counted.shape}"
        )
    return masked_mean(entropy, counted)


def normalized_entropy(entropy: Arrays, *, num_visible: ArrayLike | None = None) -> jax.Array:
    r"""Entropy of each query as a share of the most it could be, :math:`H_t / \ln n_t`.

    Args:
      entropy: `[..., T]` in nats, one value a query.
      num_visible: Number n of keys that each query sees, of a shape that broadcasts to `entropy`;
        by default that of causal self-attention, 1 to T.

    Returns:
      `[..., T]` float32, a share between 0 and 1. A query that sees one key has no choice to make:
      it gets 0. (Leave it out of a mean with `head_entropy(..., where=num_visible > 1)`.)

    Raises:
      ValueError: `entropy` is a scalar, or `num_visible` does not broadcast to it.

    Example:
      >>> normalized_entropy([0.0, math.log(2), 0.0])
      Array([0., 1., 0.], dtype=float32)
    """
    entropy = as_float32(entropy)
    check_axes("entropy", entropy, "... T")
    visible = visible_keys(entropy.shape[-1]) if num_visible is None else as_array(num_visible)
    if not broadcasts_to(visible.shape, entropy.shape):
        raise ValueError(
            f"num_visible: expected a shape that broadcasts to entropy's {entropy.shape}, "
            f"got {visible.shape}"
        )
    visible = jnp.broadcast_to(visible, entropy.shape).astype(jnp.float32)
    return jnp.where(visible > 1, entropy / jnp.log(jnp.maximum(visible, 2.0)), 0.0 * entropy)


def causal_entropy_ceiling(context_length: int) -> float:
    r"""The most that a causal head's mean entropy can be, in nats.

    .. math:: \frac{1}{T} \sum_{t=1}^{T} \ln t = \frac{\ln T!}{T}

    It is reached by uniform attention over the visible keys, and lies below ln T: 3.878 against
    4.852 at T = 128.

    Args:
      context_length: T, in tokens.

    Returns:
      The ceiling, in nats.

    Raises:
      ValueError: `context_length` is not a positive integer.

    Example:
      >>> round(causal_entropy_ceiling(128), 3)
      3.878
    """
    if context_length != int(context_length) or context_length < 1:
        raise ValueError(f"context_length must be a positive integer, got {context_length!r}")
    return math.lgamma(context_length + 1) / context_length
