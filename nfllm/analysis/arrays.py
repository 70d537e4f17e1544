"""Reading arrays of any framework, and the checks that every analysis function makes.

Shapes are always checked, since they are known even under `jax.jit`. Values are checked only where
they exist: on concrete arrays that this process can read in full.
"""

import operator
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

Arrays = ArrayLike | Sequence[ArrayLike]
"""One array, or a sequence of arrays of one shape that stands for their stack (Hugging Face returns
attentions as a tuple with one array a layer)."""


def as_array(x: Arrays) -> jax.Array:
    """Any framework's array, or a stacked sequence of them, as a JAX array of the same type.

    Raises:
      ValueError: Masked entries, or integers too large for the integers that JAX has.
    """
    if isinstance(x, jax.Array):
        return x
    if (parts := _parts(x)) is not None:
        return jnp.stack([as_array(part) for part in parts])
    values = _as_numpy(x)
    if values.dtype.kind in "iu" and values.size:
        limits = np.iinfo(jax.dtypes.canonicalize_dtype(values.dtype))
        if values.min() < limits.min or values.max() > limits.max:
            raise ValueError(
                f"an array of shape {values.shape} has integers from {values.min()} to "
                f"{values.max()}, which do not fit into {limits.dtype}; pass them as floats, or "
                "set jax_enable_x64"
            )
    return jnp.asarray(values)


def _parts(x: Any) -> Sequence[Any] | None:
    """The arrays of a sequence that stands for their stack; None for one array."""
    if isinstance(x, list | tuple) and not all(isinstance(p, bool | int | float) for p in x):
        return x
    return None


def _as_numpy(x: Any) -> np.ndarray:
    if np.ma.is_masked(x):
        raise ValueError(
            f"an array of shape {np.shape(x)} has masked entries; fill them, and leave them out "
            "with `mask` or `where`"
        )
    if not hasattr(x, "detach"):
        return np.asarray(x)
    x = x.detach().cpu()
    try:
        return np.asarray(x)
    except TypeError:
        # PyTorch does not convert types that NumPy lacks: bfloat16 and the 8-bit floats.
        return np.asarray(x.float()).astype(jnp.dtype(str(x.dtype).removeprefix("torch.")))


def as_float32(x: Arrays) -> jax.Array:
    """`as_array` in float32, the precision in which all statistics are computed."""
    if not isinstance(x, jax.Array):
        if (parts := _parts(x)) is not None:
            return jnp.stack([as_float32(part) for part in parts])
        x = _as_numpy(x)
        if x.dtype.kind in "iu":  # which may not fit into JAX's integers
            x = x.astype(np.float32)
    return as_array(x).astype(jnp.float32)


def array_namespace(*arrays: ArrayLike) -> ModuleType:
    """The module that computes on these arrays: states on the host stay on the host.

    Args:
      *arrays: Of any shape `[...]`.

    Returns:
      `jax.numpy` if any of the arrays is JAX's, else `numpy`, which keeps double precision.

    Example:
      >>> array_namespace(np.ones(3)).__name__
      'numpy'
    """
    return jnp if any(isinstance(x, jax.Array) for x in arrays) else np


def is_concrete(*arrays: jax.Array) -> bool:
    """Whether every array has values that this process can read (no tracer, no remote shard)."""
    return all(not isinstance(x, jax.core.Tracer) and x.is_fully_addressable for x in arrays)


def as_integer(name: str, value: Any) -> int:
    """The value of `name` as an integer.

    Raises:
      ValueError: a fraction, or another type.
    """
    try:
        return operator.index(value)
    except TypeError as error:
        raise ValueError(f"{name}={value!r} must be a whole number, an int") from error


def check_axes(name: str, x: jax.Array, axes: str) -> None:
    """Checks the number of axes against a legend such as `"... H T S"`, `"L ... F"` or `"L H"`.

    Raises:
      ValueError: The rank differs (or is too low, where the legend has `...`), or an axis is empty.
    """
    names = axes.split()
    open_ended = "..." in names
    needed = len(names) - open_ended
    expected = f"[{', '.join(names)}]"
    if x.ndim < needed or (x.ndim > needed and not open_ended):
        at_least = "at least " if open_ended else ""
        raise ValueError(
            f"{name}: expected shape {expected}, got {x.shape}: "
            f"{at_least}{needed} axes are needed, it has {x.ndim}"
        )
    if 0 in x.shape:
        raise ValueError(f"{name}: expected shape {expected}, got {x.shape}: an axis is empty")


def check_same_shape(names: str, x: jax.Array, y: jax.Array) -> None:
    """Raises ValueError unless the two arrays have one shape."""
    if x.shape != y.shape:
        raise ValueError(f"{names}: expected equal shapes, got {x.shape} and {y.shape}")


def causal_mask(num_queries: int, num_keys: int | None = None) -> jax.Array:
    """The causal mask: True where query t sees key s.

    The last query sees every key: with `offset = S - T` (0 without a key-value cache), query t sees
    the keys `s <= t + offset`.

    Args:
      num_queries: T.
      num_keys: S; T by default.

    Returns:
      `[T, S]` booleans.

    Example:
      >>> causal_mask(2, 3).astype(int)
      Array([[1, 1, 0],
             [1, 1, 1]], dtype=int32)
    """
    num_keys = num_queries if num_keys is None else num_keys
    return jnp.tri(num_queries, num_keys, num_keys - num_queries, dtype=bool)


def visible_keys(num_queries: int, num_keys: int | None = None) -> jax.Array:
    """Number of keys that each query of a causal head sees: `t + 1 + (S - T)`.

    Args:
      num_queries: T.
      num_keys: S; T by default.

    Returns:
      `[T]` integers, a number of keys.

    Example:
      >>> visible_keys(2, 3)
      Array([2, 3], dtype=int32)
    """
    num_keys = num_queries if num_keys is None else num_keys
    return jnp.arange(1, num_queries + 1) + (num_keys - num_queries)


def check_mask(mask: ArrayLike | None, shape: tuple[int, ...]) -> jax.Array | None:
    """A boolean mask, checked to broadcast to scores of `shape` and to have an entry for each key.

    Raises:
      ValueError: The mask does not fit, or its entries are not booleans.
    """
    if mask is None:
        return None
    mask = as_booleans("mask", mask)
    if not (mask.ndim >= 1 and mask.shape[-1] == shape[-1] and broadcasts_to(mask.shape, shape)):
        raise ValueError(
            f"mask: expected a shape that broadcasts to [..., H, T, S] = {shape} and ends in "
            f"S = {shape[-1]}, got {mask.shape}"
        )
    return mask


def as_booleans(name: str, x: Arrays) -> jax.Array:
    """A mask of booleans, or of 0 and 1.

    An array that is added to logits is also called a mask: 0 where a key is seen, a large negative
    number where not. Read as booleans it would mean the opposite. So a float mask must contain a 1;
    under `jax.jit`, where values are not known, float masks are refused.

    Raises:
      ValueError: Entries that are neither 0 nor 1, or floats that may be a mask to add to logits.
    """
    mask = as_array(x)
    if mask.dtype == bool:
        return mask
    whole = jnp.issubdtype(mask.dtype, jnp.integer)
    fits, found = whole, ""
    if is_concrete(mask):
        values = np.asarray(mask)
        fits = bool(np.isin(values, (0, 1)).all()) and (whole or bool((values == 1).any()))
        found = f" from {values.min()} to {values.max()}" if values.size else ""
    if not fits:
        raise ValueError(
            f"{name}: expected booleans, True for what counts, got {mask.dtype}{found}; for a mask "
            "that is added to logits (0 where a key is seen) pass `mask == 0`"
        )
    return mask.astype(bool)


def broadcasts_to(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """Whether an array of `shape` broadcasts to `target` without changing it."""
    return len(shape) <= len(target) and all(
        n in (1, m) for n, m in zip(shape[::-1], target[::-1], strict=False)
    )


def tail_axes(x: jax.Array, keep: int) -> tuple[int, ...]:
    """All axes but the first `keep`: those that a statistic reduces (keep=1: one value a layer).

    Raises:
      ValueError: `x` has fewer axes.
    """
    if not 0 <= keep <= x.ndim:
        raise ValueError(f"keep={keep} leading axes: shape {x.shape} has {x.ndim}")
    return tuple(range(keep, x.ndim))


def masked_mean(x: jax.Array, where: jax.Array, axis: int | tuple[int, ...] = -1) -> jax.Array:
    """Mean of `x` over the entries where `where` (broadcast to `x`) is True; NaN where none is.

    Entries left out do not reach the result or its gradient, NaN included.
    """
    where = jnp.broadcast_to(where, x.shape)
    count = jnp.sum(where, axis=axis)
    mean = jnp.sum(jnp.where(where, x, 0.0), axis=axis) / jnp.maximum(count, 1)
    return jnp.where(count > 0, mean, jnp.nan)
