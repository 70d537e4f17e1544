"""The largest singular value of a matrix, by power iteration from a stored vector."""

import jax
import jax.numpy as jnp

SMALLEST_NORM = 1e-12  # as in torch.nn.functional.normalize


def power_iteration(kernel: jax.Array, u: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A lower estimate of the largest singular value, [...], and an improved u, [..., O].

    v = K u / |K u|;  u' = Kᵀ v / |Kᵀ v|;  σ = vᵀ K u', differentiable only through K.

    Args:
      kernel: K, [..., I, O].
      u: the stored vector, [..., O].
    """
    fixed = jax.lax.stop_gradient(kernel)
    v = _unit(jnp.einsum("...IO,...O->...I", fixed, u))
    next_u = _unit(jnp.einsum("...IO,...I->...O", fixed, v))
    return jnp.einsum("...I,...IO,...O->...", v, kernel, next_u), next_u


def leading_direction(kernel: jax.Array) -> jax.Array:
    """The right singular vector of the largest singular value, [..., O].

    The matrices are decomposed one by one. Jaxlib splits a batch over the threads of a pool on a
    CPU, and waits for them in one of these threads: two batches at a time wait for each other.
    """
    matrices = kernel.reshape(-1, *kernel.shape[-2:])
    found = jax.lax.map(lambda matrix: jnp.linalg.svd(matrix, full_matrices=False)[2][0], matrices)
    return found.reshape(*kernel.shape[:-2], kernel.shape[-1])


def norm(x: jax.Array, axis: int) -> jax.Array:
    """The L2 norm along an axis, which is kept with length 1."""
    return jnp.linalg.norm(x, axis=axis, keepdims=True)


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(norm(x, -1), SMALLEST_NORM)
