"""Covariance matrices of vectors as mergeable states, like those of `statistics`."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nfllm.analysis.arrays import Arrays, array_namespace, as_float32, check_axes
from nfllm.analysis.scaling import center
from nfllm.analysis.shown import shown_in_a_line

_SMALLEST_BLOCK = 128  # narrower matrix products are slow
_MOST_ROWS = 4096  # of one sum in float32; see `_product`


@shown_in_a_line
class Covariance(NamedTuple):
    """Mean and scatter matrix of vectors, for the spectra of activations.

    Example:
      >>> state = Covariance.of([[[0.0, 1.0], [2.0, 1.0]]])  # [L, N, F]
      >>> state.merge(state).covariance()
      Array([[[1., 0.],
              [0., 0.]]], dtype=float32)
    """

    size: jax.Array
    mean: jax.Array
    """`[..., F]`."""
    scatter: jax.Array
    """`[..., F, F]`, sum of outer products of deviations."""

    @classmethod
    def of(cls, x: Arrays, *, keep: int = 1) -> Covariance:
        """State of vectors `[..., F]`, over all axes but the first `keep` and the last.

        Raises:
          ValueError: There is no axis of vectors between these.
        """
        x = as_float32(x)
        check_axes("x", x, " ".join([*["kept"] * keep, "...", "N", "F"]))
        x = x.reshape(*x.shape[:keep], -1, x.shape[-1])
        mean, deviation = center(x, -2)
        size = jnp.full(x.shape[:keep], x.shape[-2], jnp.float32)
        return cls(size, mean.squeeze(-2), _sum_of_outer_products(deviation))

    def merge(self, other: Covariance) -> Covariance:
        """The state of both."""
        count = self.size + other.size
        weight = other.size / array_namespace(*self, *other).maximum(count, 1)
        difference = other.mean - self.mean
        outer = difference[..., :, None] * difference[..., None, :]
        return Covariance(
            count,
            self.mean + difference * weight[..., None],
            self.scatter + other.scatter + outer * (self.size * weight)[..., None, None],
        )

    def covariance(self) -> jax.Array:
        """`[..., F, F]`, the scatter divided by the number of vectors."""
        return self.scatter / self.size[..., None, None]


def _sum_of_outer_products(x: jax.Array) -> jax.Array:
    """x.T @ x, `[..., N, F]` -> `[..., F, F]`; blocks known by symmetry are not computed."""
    width = x.shape[-1]
    if width <= 2 * _SMALLEST_BLOCK:
        return _product(x, x)
    left, right = x[..., : width // 2], x[..., width // 2 :]
    corner = _product(left, right)
    return jnp.block(
        [
            [_sum_of_outer_products(left), corner],
            [jnp.swapaxes(corner, -1, -2), _sum_of_outer_products(right)],
        ]
    )


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    highest = jax.lax.Precision.HIGHEST
    if x.shape[-1] > _SMALLEST_BLOCK or x.shape[-2] <= _MOST_ROWS:
        return jnp.einsum("...nf,...ng->...fg", x, y, precision=highest)
    # A CPU adds up the rows of narrow factors one by one: with 5 million the error is 0.6%.
    missing = -x.shape[-2] % _MOST_ROWS
    x, y = (jnp.pad(z, [(0, 0)] * (z.ndim - 2) + [(0, missing), (0, 0)]) for z in (x, y))
    x, y = (z.reshape(*z.shape[:-2], -1, _MOST_ROWS, z.shape[-1]) for z in (x, y))
    return jnp.einsum("...bnf,...bng->...bfg", x, y, precision=highest).sum(-3)
