"""Dropout whose mask depends on the sequence's index in the global batch, not on the device."""

import jax
import jax.numpy as jnp


def dropout(x: jax.Array, rate: float, key: jax.Array, rows_B: jax.Array) -> jax.Array:
    """Zeroes entries of x with probability `rate` and scales the others by 1 / (1 - rate).

    Each sequence draws from its own key, `fold_in(key, row)`, so that a step gives the same mask on
    one device, on many, and however the batch is split into micro-batches.

    Args:
      x: [B, ...].
      rate: probability in [0, 1).
      key: a PRNG key of this step and site.
      rows_B: index of each sequence in the global batch, int32.

    Returns:
      [B, ...], in the type of x.
    """
    if rate == 0.0:
        return x
    keys_B = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows_B)
    keep = jax.vmap(lambda row_key: jax.random.bernoulli(row_key, 1.0 - rate, x.shape[1:]))(keys_B)
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)
