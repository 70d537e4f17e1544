"""Mergeable states: statistics that stream over a dataset, over devices and over hosts.

Each state is a NamedTuple of arrays, so a pytree that can be returned from `jit`, summed over
hosts or stored. `State.of(batch)` is the state of one batch and `a.merge(b)` that of both; batches
may be merged in any order and grouping. Methods of the state compute the results:

    state = None
    for x in batches:                                   # x [B, T, F]
        state = update(state, Moments.of(x, axis=(0, 1)))
    state.mean, state.variance()                        # [F]

`merge` of NumPy arrays stays in NumPy: states that `to_host` moved there accumulate in float64.

Second moments are squares in float32: deviations above 1e18 give Inf, and below 1e-19 give 0.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import NamedTuple, Protocol, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from nfllm.analysis.arrays import (
    Arrays,
    array_namespace,
    as_booleans,
    as_float32,
    check_axes,
    check_same_shape,
    is_concrete,
    tail_axes,
)
from nfllm.analysis.scaling import center
from nfllm.analysis.shown import shown_in_a_line


class Mergeable(Protocol):
    """What all states share."""

    def merge(self, other: Self) -> Self:
        """The state of both batches."""
        ...


S = TypeVar("S", bound=Mergeable)
Tree = TypeVar("Tree")


def update(state: S | None, batch: S) -> S:
    """`state` after one more batch.

    Args:
      state: State of the batches so far; None before the first.
      batch: State of one more batch.

    Returns:
      The state of all of them.

    Example:
      >>> state = None
      >>> for x in ([1.0, 2.0], [3.0, 6.0]):
      ...     state = update(state, Moments.of(x, axis=0))
      >>> float(state.mean), float(state.variance())
      (3.0, 3.5)
    """
    return batch if state is None else state.merge(batch)


def merge_all(states: Iterable[S]) -> S:
    """The state of all batches together.

    Args:
      states: One for each batch, all of one class.

    Returns:
      The merged state.

    Raises:
      ValueError: There are no states.

    Example:
      >>> float(merge_all(Moments.of(x, axis=0) for x in ([1.0, 2.0], [3.0, 6.0])).mean)
      3.0
    """
    merged: S | None = None
    for state in states:
        merged = update(merged, state)
    if merged is None:
        raise ValueError("no state to merge: the data set has no batch")
    return merged


def to_host(state: Tree) -> Tree:
    """A tree of states as NumPy arrays in double precision, for long streams.

    Args:
      state: A state, or any tree of arrays.

    Returns:
      The same tree; its numbers are float64, its counts int64.

    Example:
      >>> to_host(Moments.of([1.0, 2.0], axis=0)).mean.dtype
      dtype('float64')
    """

    def wide(x: ArrayLike) -> np.ndarray:
        x = np.asarray(x)
        return x.astype(np.int64 if np.issubdtype(x.dtype, np.integer) else np.float64)

    return jax.tree.map(wide, state)


def _axes(x: jax.Array, axis: int | tuple[int, ...]) -> tuple[int, ...]:
    axes = tuple(int(a) for a in np.atleast_1d(axis))
    if not all(-x.ndim <= a < x.ndim for a in axes):
        raise ValueError(f"axis={axis}: shape {x.shape} has {x.ndim} axes")
    return tuple(a % x.ndim for a in axes)


@functools.partial(jax.jit, static_argnames="axes")
def _moments(x: jax.Array, use: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, ...]:
    size = jnp.sum(use, axis=axes).astype(jnp.float32)
    mean, deviation = center(x, axes, use)
    minimum = jnp.min(x, axis=axes, where=use, initial=jnp.inf)
    maximum = jnp.max(x, axis=axes, where=use, initial=-jnp.inf)
    return size, mean.squeeze(axes), jnp.sum(deviation**2, axis=axes), minimum, maximum


@functools.partial(jax.jit, static_argnames="axes")
def _comoments(x: jax.Array, y: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, ...]:
    (mean_x, dx), (mean_y, dy) = center(x, axes), center(y, axes)
    mean_x, mean_y = mean_x.squeeze(axes), mean_y.squeeze(axes)
    size = jnp.full(mean_x.shape, x.size / mean_x.size, jnp.float32)
    m2_x, m2_y, co_xy = (jnp.sum(product, axis=axes) for product in (dx**2, dy**2, dx * dy))
    return size, mean_x, mean_y, m2_x, m2_y, co_xy


@functools.partial(jax.jit, static_argnames="keep")
def _slot_counts(x: jax.Array, edges: jax.Array, keep: int) -> jax.Array:
    """Counts `[..., N + 3]`: below, in each of N bins, above, NaN."""
    num_bins = edges.shape[0] - 1
    kept = x.shape[:keep]
    x = x.reshape(math.prod(kept), -1)
    slot = jnp.searchsorted(edges, x, side="right")
    slot = jnp.where(x == edges[-1], num_bins, slot)
    slot = jnp.where(jnp.isnan(x), num_bins + 2, slot)
    counts = jax.vmap(lambda row: jnp.bincount(row, length=num_bins + 3))(slot)
    return counts.reshape(*kept, num_bins + 3)


@shown_in_a_line
class Moments(NamedTuple):
    """Size, mean, sum of squared deviations and range; every field has the shape of the mean.

    Merging is exact (Chan, Golub & LeVeque, 1979): no difference of large sums is taken.

    Example:
      >>> moments = Moments.of([1.0, 2.0], axis=0).merge(Moments.of([6.0], axis=0))
      >>> float(moments.mean), float(moments.maximum)
      (3.0, 6.0)
    """

    size: jax.Array
    mean: jax.Array
    m2: jax.Array
    minimum: jax.Array
    maximum: jax.Array

    @classmethod
    def of(
        cls, x: Arrays, *, axis: int | tuple[int, ...], where: ArrayLike | None = None
    ) -> Moments:
        """Moments over `axis`, of the entries where `where` (broadcast to `x`) is True.

        NaN among them gives NaN. Without any entry, size and mean are 0, the range is [Inf, -Inf],
        and merging with the state changes nothing.
        """
        x = as_float32(x)
        use = jnp.ones(x.shape, bool) if where is None else as_booleans("where", where)
        return cls(*_moments(x, jnp.broadcast_to(use, x.shape), _axes(x, axis)))

    def merge(self, other: Moments) -> Moments:
        """The moments of both."""
        xp = array_namespace(*self, *other)
        count = self.size + other.size
        weight = other.size / xp.maximum(count, 1)
        difference = other.mean - self.mean
        return Moments(
            count,
            # An infinite mean times a weight of 0 would be NaN.
            self.mean + xp.where(weight > 0, difference * weight, 0),
            self.m2 + other.m2 + difference**2 * self.size * weight,
            xp.minimum(self.minimum, other.minimum),
            xp.maximum(self.maximum, other.maximum),
        )

    def variance(self, *, ddof: int = 0) -> jax.Array:
        """`m2 / (size - ddof)`; NaN where the size is not above `ddof`. `ddof=1` for a sample."""
        xp = array_namespace(*self)
        degrees = self.size - ddof
        return xp.where(degrees > 0, self.m2 / xp.maximum(degrees, 1), xp.nan)

    def std(self, *, ddof: int = 0) -> jax.Array:
        """Standard deviation, the root of `variance`."""
        return array_namespace(*self).sqrt(self.variance(ddof=ddof))

    def standard_error(self) -> jax.Array:
        """Standard error of the mean of independent entries, `sqrt(variance(ddof=1) / size)`."""
        xp = array_namespace(*self)
        return xp.sqrt(self.variance(ddof=1) / xp.maximum(self.size, 1))


@shown_in_a_line
class LinearFit(NamedTuple):
    """The line `slope * x + intercept` of least squares, and the share of variance it explains."""

    slope: jax.Array
    intercept: jax.Array
    r_squared: jax.Array


@shown_in_a_line
class Comoments(NamedTuple):
    """Means and second moments of pairs (x, y); every field has the shape of the mean."""

    size: jax.Array
    mean_x: jax.Array
    mean_y: jax.Array
    m2_x: jax.Array
    m2_y: jax.Array
    co_xy: jax.Array

    @classmethod
    def of(cls, x: Arrays, y: Arrays, *, axis: int | tuple[int, ...]) -> Comoments:
        """Moments of the pairs over `axis`; x and y have one shape."""
        x, y = as_float32(x), as_float32(y)
        check_same_shape("x and y", x, y)
        return cls(*_comoments(x, y, _axes(x, axis)))

    def merge(self, other: Comoments) -> Comoments:
        """The moments of both."""
        xp = array_namespace(*self, *other)
        count = self.size + other.size
        weight = other.size / xp.maximum(count, 1)
        scale = self.size * weight
        dx, dy = other.mean_x - self.mean_x, other.mean_y - self.mean_y
        return Comoments(
            count,
            self.mean_x + dx * weight,
            self.mean_y + dy * weight,
            self.m2_x + other.m2_x + dx**2 * scale,
            self.m2_y + other.m2_y + dy**2 * scale,
            self.co_xy + other.co_xy + dx * dy * scale,
        )

    def linear_fit(self) -> LinearFit:
        """The line of y on x. Slope and R² are NaN where x is constant, R² also where y is."""
        xp = array_namespace(*self)
        safe_x = xp.where(self.m2_x > 0, self.m2_x, xp.nan)
        safe_y = xp.where(self.m2_y > 0, self.m2_y, xp.nan)
        slope = self.co_xy / safe_x
        return LinearFit(slope, self.mean_y - slope * self.mean_x, slope * (self.co_xy / safe_y))


@shown_in_a_line
class Histogram(NamedTuple):
    """Counts between fixed edges, below and above them, and of NaN.

    A bin includes its lower edge; the last one includes its upper edge as well.

    Example:
      >>> found = Histogram.of([0.0, 0.5, 1.0, 2.0, 7.0], edges=[0.0, 1.0, 2.0])
      >>> found.counts, found.above
      (Array([2, 2], dtype=int32), Array(1, dtype=int32))
    """

    edges: jax.Array
    """`[N+1]`, ascending."""
    counts: jax.Array
    """`[..., N]`."""
    below: jax.Array
    above: jax.Array
    nan: jax.Array

    @classmethod
    def of(cls, x: Arrays, edges: Arrays, *, keep: int = 0) -> Histogram:
        """Histogram over all axes but the first `keep`, whose shape the counts have."""
        x, edges = as_float32(x), as_float32(edges)
        check_axes("edges", edges, "N+1")
        tail_axes(x, keep)
        if len(edges) < 2 or (is_concrete(edges) and not np.all(np.diff(np.asarray(edges)) > 0)):
            raise ValueError(f"edges: expected at least two ascending numbers, got {edges}")
        counts = _slot_counts(x, edges, keep)
        return cls(edges, counts[..., 1:-2], counts[..., 0], counts[..., -2], counts[..., -1])

    def merge(self, other: Histogram) -> Histogram:
        """The histogram of both.

        Raises:
          ValueError: Their edges differ.
        """
        same = self.edges.shape == other.edges.shape
        if same and not any(isinstance(h.edges, jax.core.Tracer) for h in (self, other)):
            same = np.array_equal(np.asarray(self.edges), np.asarray(other.edges))
        if not same:
            raise ValueError(f"histograms with different edges: {self.edges} and {other.edges}")
        return Histogram(
            self.edges,
            self.counts + other.counts,
            self.below + other.below,
            self.above + other.above,
            self.nan + other.nan,
        )
