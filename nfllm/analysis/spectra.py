"""Spectra of covariance matrices: how many directions a representation uses.

`covariance.Covariance` accumulates covariances over a dataset.
"""

import jax
import jax.numpy as jnp

from nfllm.analysis.arrays import Arrays, as_float32, check_axes
from nfllm.analysis.divergence import jensen_shannon, shannon_entropy
from nfllm.analysis.scaling import scale_of


def participation_ratio(covariance: Arrays) -> jax.Array:
    r"""Participation ratio of the eigenvalues of each matrix (Gao et al., bioRxiv 214262, 2017).

    .. math:: \Big(\sum_i \lambda_i\Big)^2 \Big/ \sum_i \lambda_i^2
        = (\mathrm{tr}\, C)^2 / \|C\|_F^2

    It needs no eigendecomposition.

    Args:
      covariance: `[..., F, F]`, symmetric.

    Returns:
      `[...]` float32, a number of directions between 1 and F (all alike); NaN for a zero matrix.

    Example:
      >>> participation_ratio([[2.0, 0.0], [0.0, 2.0]])
      Array(2., dtype=float32)
    """
    c = _read(covariance)
    # Divided first: the squares of small or of large entries leave the range of float32.
    shares = c / jnp.trace(c, axis1=-2, axis2=-1)[..., None, None]
    return 1.0 / jnp.sum(shares**2, axis=(-2, -1))


def projected_participation_ratio(covariance: Arrays, kernel: Arrays) -> jax.Array:
    r"""Participation ratio of x W from the covariance of x, without forming that of x W.

    With :math:`C = W^T \Sigma W` and :math:`A = \Sigma W W^T`,

    .. math:: (\mathrm{tr}\, C)^2 / \|C\|_F^2 = (\mathrm{tr}\, A)^2 / \mathrm{tr}(A A)

    Args:
      covariance: `[..., D, D]`, of x.
      kernel: `[..., D, F]`, the matrix W.

    Returns:
      `[...]` float32, a number of directions between 1 and F; NaN where x W does not vary.

    Example:
      >>> projected_participation_ratio(jnp.eye(3), [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
      Array(2., dtype=float32)
    """
    c, w = _read(covariance), as_float32(kernel)
    check_axes("kernel", w, "... D F")
    highest = jax.lax.Precision.HIGHEST
    w = w / scale_of(w, axis=(-2, -1))
    gram = jnp.einsum("...df,...ef->...de", w, w, precision=highest)
    # Divided first, as in `participation_ratio`.
    shares = (x / jnp.trace(x, axis1=-2, axis2=-1)[..., None, None] for x in (c, gram))
    a = jnp.matmul(*shares, precision=highest)
    a = a / scale_of(a, axis=(-2, -1))
    square = jnp.sum(a * jnp.swapaxes(a, -1, -2), axis=(-2, -1))
    return jnp.trace(a, axis1=-2, axis2=-1) ** 2 / square


def eigenvalue_shares(covariance: Arrays) -> jax.Array:
    r"""Eigenvalues as shares of their sum, :math:`\lambda_i / \sum_j \lambda_j`, descending.

    Args:
      covariance: `[..., F, F]`, symmetric.

    Returns:
      `[..., F]` float32, shares.

    Example:
      >>> eigenvalue_shares([[1.0, 0.0], [0.0, 3.0]])
      Array([0.75, 0.25], dtype=float32)
    """
    eigenvalues = jnp.maximum(eigenvalues_of(_read(covariance)), 0.0)[..., ::-1]
    return eigenvalues / jnp.sum(eigenvalues, axis=-1, keepdims=True)


def eigenvalues_of(symmetric: jax.Array) -> jax.Array:
    """Eigenvalues `[..., F]` in rising order; NaN for a matrix with an entry that is not finite."""
    is_finite = jnp.all(jnp.isfinite(symmetric), axis=(-2, -1))[..., None]
    return jnp.where(is_finite, jnp.linalg.eigvalsh(symmetric), jnp.nan)


def spectral_entropy(covariance: Arrays) -> jax.Array:
    r"""Entropy of the eigenvalue shares p, :math:`-\sum_i p_i \ln p_i`.

    Args:
      covariance: `[..., F, F]`, symmetric.

    Returns:
      `[...]` float32, in nats between 0 and ln F.

    Example:
      >>> spectral_entropy([[2.0, 0.0], [0.0, 2.0]]).round(4)  # ln 2
      Array(0.6931, dtype=float32)
    """
    return shannon_entropy(eigenvalue_shares(covariance))


def spectral_divergence(pre: Arrays, post: Arrays) -> jax.Array:
    """Jensen-Shannon divergence between the spectra before and after an activation.

    Shares of eigenvalues are compared rank by rank (arXiv 2603.06922); see `jensen_shannon` for
    the equation.

    Args:
      pre: `[..., F, F]`, covariance before the activation.
      post: `[..., F, F]`, after it.

    Returns:
      `[...]` float32, in nats between 0 and ln 2.

    Example:
      >>> spectral_divergence(jnp.eye(2), 7 * jnp.eye(2))
      Array(0., dtype=float32)
    """
    return jensen_shannon(eigenvalue_shares(pre), eigenvalue_shares(post))


def _read(covariance: Arrays) -> jax.Array:
    """The matrices at a scale where nothing over- or underflows; no result depends on it."""
    c = as_float32(covariance)
    check_axes("covariance", c, "... F F")
    if c.shape[-1] != c.shape[-2]:
        raise ValueError(f"covariance: expected shape [..., F, F], got {c.shape}")
    return c / scale_of(c, axis=(-2, -1))
