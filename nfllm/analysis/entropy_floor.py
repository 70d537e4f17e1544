"""The least entropy that logits of a given size allow."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from nfllm.analysis.arrays import Arrays, as_array, as_float32, is_concrete


def entropy_floor(norm: Arrays, num_keys: ArrayLike) -> jax.Array:
    r"""The least entropy of a softmax over n logits that lie as far apart as these.

    .. math:: H \ge \ln(1 + (n-1) b) + \frac{s \sqrt{n (n-1)}\, b}{1 + (n-1) b}, \qquad
       b = e^{-s \sqrt{n / (n-1)}}

    with s the Euclidean norm of the logits after their mean is subtracted. It is attained by one
    high logit among equal ones. It distinguishes a head that has not collapsed from one that
    cannot: the smaller a row's logits, the nearer its floor is to ln n. It is the bound of arXiv
    2303.06296, which uses the spectral norm of the weights where this uses the row's own logits.

    The mean floor of several rows is not the floor at their mean norm: compute it row by row. With
    the standard deviation of a row's logits, s is the standard deviation times sqrt(n).

    Args:
      norm: s, of any shape `[...]`, not negative.
      num_keys: n, the keys that each query sees, of a shape that broadcasts with `norm`; for causal
        self-attention `visible_keys(T)`.

    Returns:
      The floor in nats, float32, of the shape of both together; 0 where n is 1, NaN where s is NaN.

    Raises:
      ValueError: A norm is negative, or a number of keys below 1.

    Example:
      >>> entropy_floor([0.0, 1.0, 10.0], 4)
      Array([1.3863, 1.2267, 0.0004], dtype=float32)
    """
    s, keys = as_float32(norm), as_array(num_keys)
    if is_concrete(s) and bool(np.any(np.asarray(s) < 0)):
        raise ValueError(f"norm must not be negative, got {np.nanmin(np.asarray(s))}")
    if is_concrete(keys) and not bool(np.all(np.asarray(keys) >= 1)):
        raise ValueError(f"num_keys must be at least 1, got {np.asarray(keys).min()}")
    return _floor(s, keys)


@jax.jit
def _floor(s: jax.Array, keys: jax.Array) -> jax.Array:
    s, keys = jnp.broadcast_arrays(*_same_rank(s, keys.astype(jnp.float32)))
    others = jnp.maximum(keys - 1, 1.0)
    b = jnp.exp(-s * jnp.sqrt((others + 1) / others))
    # Where b vanishes s may be infinite, and their product is 0.
    bounded = jnp.where(b == 0, 0.0, s)
    floor = jnp.log1p(others * b) + bounded * jnp.sqrt(others * (others + 1)) * b / (1 + others * b)
    return jnp.where(keys > 1, floor, 0.0 * bounded)


def _same_rank(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both with as many axes as the larger rank, so that they broadcast without rank promotion."""
    rank = max(x.ndim, y.ndim)
    x, y = (z.reshape((1,) * (rank - z.ndim) + z.shape) for z in (x, y))
    return x, y
