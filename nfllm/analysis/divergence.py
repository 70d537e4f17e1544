"""Entropy of and divergence between discrete distributions, in nats."""

import jax
import jax.numpy as jnp
import numpy as np

from nfllm.analysis.arrays import Arrays, as_float32, check_axes, tree_sum


def shannon_entropy(p: Arrays) -> jax.Array:
    r"""Entropy :math:`-\sum_i p_i \ln p_i` of distributions `[..., N]`, over the last axis.

    NaN gives NaN, and a negative probability gives NaN. The gradient at p = 0 is 0.
    """
    p = as_float32(p)
    check_axes("p", p, "... N")
    return -tree_sum(p * jnp.log(jnp.where(p == 0, 1.0, p)), axis=-1)


def jensen_shannon(p: Arrays, q: Arrays) -> jax.Array:
    r"""Jensen-Shannon divergence of the distributions on the last axis.

    .. math:: D(p, q) = \tfrac{1}{2} \sum_i p_i \ln \frac{p_i}{m_i}
        + \tfrac{1}{2} \sum_i q_i \ln \frac{q_i}{m_i}, \qquad m = \frac{p + q}{2}

    Symmetric, 0 for equal distributions, ln 2 = 0.693 nats for disjoint ones (Lin, 1991).

    Args:
      p: `[..., N]` distributions.
      q: `[..., N]` distributions; broadcast against `p`.

    Returns:
      `[...]` float32, in nats.

    Raises:
      ValueError: The shapes do not broadcast.
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
    middle = (p + q) / 2

    def relative_entropy(x: jax.Array) -> jax.Array:
        ratio = jnp.where(x == 0, 1.0, x / jnp.where(middle == 0, 1.0, middle))
        return tree_sum(x * jnp.log(ratio), axis=-1)

    # Not the difference of entropies, which loses small divergences to rounding.
    return (relative_entropy(p) + relative_entropy(q)) / 2
