"""How different the heads of a layer are from each other."""

import math

import jax
import jax.numpy as jnp

from nfllm.analysis.arrays import Arrays, as_float32, check_axes
from nfllm.analysis.divergence import jensen_shannon, shannon_entropy
from nfllm.analysis.scaling import center
from nfllm.analysis.signal import rms
from nfllm.analysis.spectra import eigenvalues_of


def head_entropy_spread(entropy: Arrays) -> jax.Array:
    r"""Standard deviation of entropy over the heads of a layer.

    .. math:: \sqrt{\frac{1}{H} \sum_h (e_h - \bar e)^2}

    The heads are the whole population, not a sample: the sum of squares is divided by H.

    Args:
      entropy: `[..., H]` head entropies in nats.

    Returns:
      `[...]` float32, in nats.

    Example:
      >>> head_entropy_spread([[1.0, 3.0], [2.0, 2.0]])
      Array([1., 0.], dtype=float32)
    """
    entropy = as_float32(entropy)
    check_axes("entropy", entropy, "... H")
    _, deviation = center(entropy, -1)
    return rms(deviation, keep=deviation.ndim - 1)


def head_divergence(probs: Arrays) -> jax.Array:
    r"""Jensen-Shannon divergence between every two heads, averaged over the queries.

    .. math:: D_{ij} = \frac{1}{T} \sum_t \Big[ H\Big(\frac{p^i_t + p^j_t}{2}\Big)
        - \frac{H(p^i_t) + H(p^j_t)}{2} \Big]

    with H the entropy of a query's distribution; see `jensen_shannon` for two distributions.

    One head at a time is compared with all, so that temporaries are of the size of `probs`.

    Args:
      probs: `[..., H, T, S]` attention probabilities.

    Returns:
      `[..., H, H]` float32, symmetric with a zero diagonal, in nats between 0 and ln 2.

    Example:
      >>> head_divergence([[[1.0, 0.0]], [[0.0, 1.0]]]).round(4)  # two heads, one query
      Array([[0.    , 0.6931],
             [0.6931, 0.    ]], dtype=float32)
    """
    probs = as_float32(probs)
    check_axes("probs", probs, "... H T S")
    return _head_divergence(probs)


@jax.jit
def _head_divergence(probs: jax.Array) -> jax.Array:
    def against_all(head: jax.Array) -> jax.Array:
        one = jax.lax.dynamic_slice_in_dim(probs, head, 1, axis=-3)
        return jnp.mean(jensen_shannon(one, probs), axis=-1)

    rows = jax.lax.map(against_all, jnp.arange(probs.shape[-3]))
    return jnp.moveaxis(rows, 0, -2)


def effective_heads(divergence: Arrays) -> jax.Array:
    r"""Effective number of heads: 1 when all attend alike, H when no two share a key.

    .. math:: \exp\Big(-\sum_i \lambda_i \ln \lambda_i\Big), \qquad
        \lambda = \text{eigenvalues of } \frac{1}{H} \Big(1 - \frac{D_{ij}}{\ln 2}\Big)_{ij}

    The Vendi score (Friedman & Dieng, arXiv 2210.02410) of a similarity that is positive definite
    for the Jensen-Shannon divergence D (Martins et al., JMLR 10, 2009).

    Args:
      divergence: `[..., H, H]` in nats, as `head_divergence` returns it. Average this over the
        batch, not the effective numbers.

    Returns:
      `[...]` float32, a number of heads between 1 and H.

    Raises:
      ValueError: The last two axes differ.

    Example:
      >>> effective_heads([[0.0, math.log(2)], [math.log(2), 0.0]]).round(4)
      Array(2., dtype=float32)
    """
    divergence = as_float32(divergence)
    check_axes("divergence", divergence, "... H H")
    num_heads = divergence.shape[-1]
    if divergence.shape[-2] != num_heads:
        raise ValueError(f"divergence: expected shape [..., H, H], got {divergence.shape}")
    eigenvalues = eigenvalues_of((1 - divergence / math.log(2)) / num_heads)
    return jnp.exp(shannon_entropy(jnp.maximum(eigenvalues, 0.0)))
