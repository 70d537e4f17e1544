"""Spectra of covariance matrices: how many directions a representation uses.

Covariances stream: `statistics.Covariance` gathers them over a dataset.
"""

import jax
import jax.numpy as jnp

from nfllm.analysis.arrays import Arrays, as_float32, check_axes
from nfllm.analysis.divergence import jensen_shannon, shannon_entropy
from nfllm.analysis.scaling import scale_of


def participation_ratio(covariance: Arrays) -> jax.Array:
    r"""Participation ratio of the eigenvalues of each matrix, `[..., F, F]` -> `[...]`.

    .. math:: (\sum_i \lambda_i)^2 / \sum_i \lambda_i^2 = (\mathrm{tr}\, C)^2 / \|C\|_F^2

    Between 1 (one direction) and F (all alike). No eigenvalue is computed. NaN for a zero matrix.
    """
    c = _read(covariance)
    # Divided first: the squares of small or of large entries leave the range of float32.
    shares = c / jnp.trace(c, axis1=-2, axis2=-1)[..., None, None]
    return 1.0 / jnp.sum(shares**2, axis=(-2, -1))


def projected_participation_ratio(covariance: Arrays, kernel: Arrays) -> jax.Array:
    r"""Participation ratio of x W from the covariance of x, without that of x W.

    With :math:`C = W^T \Sigma W` and :math:`A = \Sigma W W^T`,

    .. math:: (\mathrm{tr}\, C)^2 / \|C\|_F^2 = (\mathrm{tr}\, A)^2 / \mathrm{tr}(A A)

    Args:
      covariance: `[..., D, D]`, of x.
      kernel: `[..., D, F]`, the matrix W.

    Returns:
      `[...]`, float32; NaN where x W does not vary.
    """
    c, w = _read(covariance), as_float32(kernel)
    check_axes("kernel", w, "... D F")
    highest = jax.lax.Precision.HIGHEST
    w = w / scale_of(w, axis=(-2, -1))
    gram = jnp.einsum("...df,...ef->...de", w, w, precision=highest)
    # Divided first, as in `participation_ratio`.
    shares = (x / jnp.trace(x, axis1=-2, axis2=-1)[..., None, None] for x in (c, gram))
    a = jnp.matmul(*shares, precision=highest)
    square = jnp.sum(a * jnp.swapaxes(a, -1, -2), axis=(-2, -1))
    return jnp.trace(a, axis1=-2, axis2=-1) ** 2 / square


def eigenvalue_shares(covariance: Arrays) -> jax.Array:
    """Eigenvalues as shares of their sum, descending, `[..., F, F]` -> `[..., F]`."""
    eigenvalues = jnp.maximum(jnp.linalg.eigvalsh(_read(covariance)), 0.0)[..., ::-1]
    return eigenvalues / jnp.sum(eigenvalues, axis=-1, keepdims=True)


def spectral_entropy(covariance: Arrays) -> jax.Array:
    r"""Entropy of the eigenvalue shares, `[..., F, F]` -> `[...]`, in nats between 0 and ln F."""
    return shannon_entropy(eigenvalue_shares(covariance))


def spectral_divergence(pre: Arrays, post: Arrays) -> jax.Array:
    """Jensen-Shannon divergence between the spectra before and after an activation, in nats.

    Shares of eigenvalues are compared rank by rank (arXiv 2603.06922), `[..., F, F]` -> `[...]`.
    """
    return jensen_shannon(eigenvalue_shares(pre), eigenvalue_shares(post))


def _read(covariance: Arrays) -> jax.Array:
    """The matrices at a scale where nothing over- or underflows; no result depends on it."""
    c = as_float32(covariance)
    check_axes("covariance", c, "... F F")
    if c.shape[-1] != c.shape[-2]:
        raise ValueError(f"covariance: expected shape [..., F, F], got {c.shape}")
    return c / scale_of(c, axis=(-2, -1))
