"""Entropy of and divergence between discrete distributions, in nats."""

import jax
import jax.numpy as jnp
import numpy as np

from nfllm.analysis.arrays import Arrays, as_float32, check_axes


def shannon_entropy(p: Arrays) -> jax.Array:
    r"""Entropy of distributions, over the last axis (Shannon, 1948).

    .. math:: H = -\sum_i p_i \ln p_i, \qquad 0 \ln 0 = 0

    NaN gives NaN, and a negative probability gives NaN. The gradient at p = 0 is 0.

    Args:
      p: `[..., N]` distributions.

    Returns:
      `[...]` float32, in nats.

    Raises:
      ValueError: `p` is a scalar or empty.

    Example:
      >>> shannon_entropy([0.25, 0.25, 0.25, 0.25]).round(4)  # ln 4
      Array(1.3863, dtype=float32)
    """
    p = as_float32(p)
    check_axes("p", p, "... N")
    return -_tree_sum(p * jnp.log(jnp.where(p == 0, 1.0, p)))


def jensen_shannon(p: Arrays, q: Arrays) -> jax.Array:
    r"""Jensen-Shannon divergence of the distributions on the last axis.

    .. math:: D(p, q) = \tfrac{1}{2} \sum_i p_i \ln \frac{p_i}{m_i}
        + \tfrac{1}{2} \sum_i q_i \ln \frac{q_i}{m_i}, \qquad m = \frac{p + q}{2}

    Symmetric, 0 for equal distributions, ln 2 = 0.693 nats for disjoint ones (Lin, 1991).

    Args:
      p: `[..., N]` distributions.
      q: `[..., N]` distributions; broadcast against `p`.

    Returns:
      `[...]` float32, in nats, never below 0; small divergences are as exact as large ones. NaN
      where `p` or `q` has NaN or a negative entry.

    Raises:
      ValueError: The shapes do not broadcast.

    Example:
      >>> jensen_shannon([1.0, 0.0], [[1.0, 0.0], [0.0, 1.0]]).round(4)
      Array([0.    , 0.6931], dtype=float32)
    """
    p, q = as_float32(p), as_float32(q)
    check_axes("p", p, "... N")
    check_axes("q", q, "... N")
    try:
        shape = np.broadcast_shapes(p.shape, q.shape)
    except ValueError:
        shape = ()
    if p.shape[-1] != q.shape[-1] or not shape:
        raise ValueError(
            f"p and q: expected shapes [..., N] that broadcast, got {p.shape} and {q.shape}"
        )
    p, q = jnp.broadcast_to(p, shape), jnp.broadcast_to(q, shape)
    total = p + q
    contrast = (p - q) / jnp.where(total == 0, 1.0, total)
    # A term is negative only by rounding, which could dominate a sum of small terms.
    terms = jnp.maximum(total * _divergence_of_contrast(contrast), 0.0)
    return _tree_sum(jnp.where((p < 0) | (q < 0), jnp.nan, terms)) / 4


def _divergence_of_contrast(d: jax.Array) -> jax.Array:
    """(1 + d) ln(1 + d) + (1 - d) ln(1 - d), d in [-1, 1]: about d² where d is small.

    There the two terms, near d and -d, would cancel; in 2 d atanh(d) + ln(1 - d²) nothing does.
    """
    near = jnp.abs(d) < 0.5
    small = jnp.where(near, d, 0.0)
    series = small * (jnp.log1p(small) - jnp.log1p(-small)) + jnp.log1p(-(small**2))
    up, down = 1 + d, 1 - d
    whole = sum(x * jnp.log(jnp.where(near | (x == 0), 1.0, x)) for x in (up, down))
    return jnp.where(near, series, whole)


def _tree_sum(x: jax.Array) -> jax.Array:
    """Sum over the last axis in groups of 64, then of their sums, and so on.

    For some shapes XLA adds up the products with a logarithm one after the other on a CPU, which
    leaves 4096 equal terms off by 1e-5 of their sum.
    """
    while x.shape[-1] > 64:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % 64)])
        # Without the barrier XLA joins the stages into one sum over everything.
        x = jax.lax.optimization_barrier(jnp.sum(x.reshape(*x.shape[:-1], -1, 64), axis=-1))
    return jnp.sum(x, axis=-1)
