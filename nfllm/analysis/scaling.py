"""Norms and deviations that are right at every scale that float32 can hold.

Squares leave the range of float32 where entries are above 1e19 or below 1e-19. So entries are first
divided by a power of two near the largest, which rounds nothing.
"""

import jax
import jax.numpy as jnp

Axes = int | tuple[int, ...]


def scale_of(x: jax.Array, axis: Axes) -> jax.Array:
    """The power of two below the largest entry over `axis`, which is kept with length 1.

    1 where nothing can be scaled: where all entries are 0, or one is not finite.
    """
    largest = jnp.max(jnp.abs(jax.lax.stop_gradient(x)), axis=axis, keepdims=True, initial=0)
    _, exponent = jnp.frexp(largest)
    scalable = (largest >= jnp.finfo(jnp.float32).tiny) & (largest < jnp.inf)
    return jnp.where(scalable, jnp.ldexp(jnp.float32(1), exponent - 1), 1.0)


def safe_sqrt(x: jax.Array) -> jax.Array:
    """Square root whose gradient at 0 is 0, where that of `jnp.sqrt` is infinite."""
    is_zero = x == 0
    return jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, x)))


def scaled_norm(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Euclidean norms of the vectors on the last axis, as scale `[..., 1]` and norm / scale."""
    scale = scale_of(x, axis=-1)
    return scale, safe_sqrt(jnp.sum((x / scale) ** 2, axis=-1, keepdims=True))


def center(x: jax.Array, axis: Axes, where: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Mean over `axis`, kept with length 1, and deviations from it, 0 for entries left out.

    Equal entries deviate by exactly 0 from their mean, however their sum is rounded; otherwise a
    constant would have a variance above 0, and what is divided by it would not be NaN. NaN gives
    NaN.
    """
    use = jnp.ones(x.shape, bool) if where is None else jnp.broadcast_to(where, x.shape)
    size = jnp.sum(use, axis=axis, keepdims=True)
    mean = jnp.sum(x, axis=axis, where=use, keepdims=True) / jnp.maximum(size, 1)
    lowest = jnp.min(x, axis=axis, where=use, initial=jnp.inf, keepdims=True)
    highest = jnp.max(x, axis=axis, where=use, initial=-jnp.inf, keepdims=True)
    constant = jax.lax.stop_gradient(lowest == highest)
    mean = jnp.where(constant, mean + jax.lax.stop_gradient(lowest - mean), mean)
    return mean, jnp.where(use, x - mean, 0.0)
