"""Units of the MLP: how linear they are, and which are dead, always on or sparse.

`pre` is what enters the activation, `post` what leaves it, both `[L, B, T, F]`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nfllm.analysis.arrays import (
    Arrays,
    array_namespace,
    as_float32,
    check_axes,
    check_same_shape,
)
from nfllm.analysis.shown import shown_in_a_line
from nfllm.analysis.statistics import Comoments


def activation_moments(pre: Arrays, post: Arrays) -> Comoments:
    """State from which the best linear fit of each layer's activation is read.

    A GELU whose inputs are small is nearly linear (R² near 1), a ReLU never is (R² = 0.5 / (1 -
    1/π) = 0.73 for a Gaussian input of mean 0).

    Args:
      pre: `[L, ..., F]` pre-activations.
      post: `[L, ..., F]` activations.

    Returns:
      `Comoments` with fields `[L]` float32, in the units of the arrays, mergeable over batches.

    Raises:
      ValueError: The shapes differ.

    Example:
      >>> pre = jnp.array([[-1.0, 0.0, 1.0]])  # one layer
      >>> fit = activation_moments(pre, jnp.maximum(pre, 0)).linear_fit()
      >>> fit.slope, fit.r_squared
      (Array([0.5], dtype=float32), Array([0.75], dtype=float32))
    """
    pre, post = as_float32(pre), as_float32(post)
    check_axes("pre", pre, "L ... F")
    check_same_shape("pre and post", pre, post)
    return Comoments.of(pre, post, axis=tuple(range(1, pre.ndim)))


@shown_in_a_line
class UnitActivity(NamedTuple):
    """How often each unit is on and how often its output is zero. Mergeable over batches.

    A unit is on where its pre-activation is positive: the open side of ReLU, and the side on which
    GELU and the leaky family pass their input on.

    Example:
      >>> pre = jnp.array([[[1.0, -1.0], [2.0, -3.0]]])  # one layer, two tokens, two units
      >>> UnitActivity.of(pre, jnp.maximum(pre, 0)).dead_share()
      Array([0.5], dtype=float32)
    """

    num_tokens: jax.Array
    """A scalar."""
    on: jax.Array
    """`[L, F]`, tokens for which the unit is on."""
    zero: jax.Array
    """`[L, F]`, tokens for which the output is at most `threshold` in absolute value."""
    nan: jax.Array
    """`[L, F]`, tokens for which input or output is NaN: every share with such a unit is NaN."""

    @classmethod
    def of(cls, pre: Arrays, post: Arrays, *, threshold: float = 0.0) -> UnitActivity:
        """State of one batch of `[L, ..., F]` arrays.

        Raises:
          ValueError: The shapes differ, or the threshold is negative.
        """
        if threshold < 0:
            raise ValueError(f"threshold must not be negative, got {threshold}")
        pre, post = as_float32(pre), as_float32(post)
        check_axes("pre", pre, "L ... F")
        check_same_shape("pre and post", pre, post)
        tokens = tuple(range(1, pre.ndim - 1))
        count = pre.size // (pre.shape[0] * pre.shape[-1])
        return cls(
            jnp.asarray(count, jnp.int32),
            jnp.sum(pre > 0, axis=tokens),
            jnp.sum(jnp.abs(post) <= threshold, axis=tokens),
            jnp.sum(jnp.isnan(pre) | jnp.isnan(post), axis=tokens),
        )

    def merge(self, other: UnitActivity) -> UnitActivity:
        """The state of both batches."""
        return UnitActivity(
            self.num_tokens + other.num_tokens,
            self.on + other.on,
            self.zero + other.zero,
            self.nan + other.nan,
        )

    def frequency(self) -> jax.Array:
        """Share of tokens for which each unit is on, `[L, F]`."""
        return self._unless_nan(self.on / self.num_tokens)

    def dead_share(self) -> jax.Array:
        """Share of units that were on for no token, `[L]`."""
        return self._unless_nan(self.on == 0).mean(-1)

    def always_on_share(self) -> jax.Array:
        """Share of units that were on for every token, `[L]`: for these a ReLU is linear."""
        return self._unless_nan(self.on == self.num_tokens).mean(-1)

    def sparsity(self) -> jax.Array:
        """Share of outputs that are zero, `[L]`."""
        return self._unless_nan(self.zero / self.num_tokens).mean(-1)

    def _unless_nan(self, of_unit: jax.Array) -> jax.Array:
        return array_namespace(*self).where(self.nan > 0, math.nan, of_unit)


def weight_decay_curve(initial: Arrays, learning_rates: Arrays, weight_decay: float) -> jax.Array:
    r"""A parameter under decoupled weight decay alone, to compare learned slopes with.

    .. math:: p_k = p_0 \prod_{j<k} (1 - \eta_j \lambda)

    A learned slope that follows this curve has learned nothing: at the paper's settings decay alone
    multiplies slopes by 0.196.

    Args:
      initial: Start value, of any shape `[...]`.
      learning_rates: `[N]`, the rate of each step, without unit.
      weight_decay: The coefficient, such as 0.1; times each rate at most 1, else NaN.

    Returns:
      `[N+1, ...]` float32, in the units of `initial`: the value before the first step, and after
      each.

    Raises:
      ValueError: `learning_rates` is not of rank 1.

    Example:
      >>> weight_decay_curve(1.0, [0.5, 0.5], weight_decay=0.1).round(4)
      Array([1.    , 0.95  , 0.9025], dtype=float32)
    """
    rates = as_float32(learning_rates)
    check_axes("learning_rates", rates, "N")
    initial = as_float32(initial)
    # Summed as logarithms: 32,600 factors near 1 - 5e-5, rounded to float32, are off by 4e-4.
    log_factors = jnp.cumsum(jnp.log1p(-rates * weight_decay))
    factors = jnp.exp(jnp.concatenate([jnp.zeros(1, jnp.float32), log_factors]))
    return factors.reshape(-1, *[1] * initial.ndim) * initial[None]
