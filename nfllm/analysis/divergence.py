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

    .. math:: D(p, q) = H\left(\tfrac{p+q}{2}\right) - \tfrac{1}{2} H(p) - \tfrac{1}{2} H(q)

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
    mixture = shannon_entropy((p + q) / 2)
    return mixture - (shannon_entropy(p) + shannon_entropy(q)) / 2
