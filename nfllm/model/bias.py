"""Adding a bias to activations of 16 bits."""

import jax
import jax.numpy as jnp


def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """x + bias, in the type of x; `bias`, float32, broadcasts against x.

    It is broadcast before the cast, not after it. The result is the same, but the gradient of a
    broadcast is a sum over all tokens, which is inaccurate in 16 bits: this way it is in float32.
    """
    return x + jnp.broadcast_to(bias, x.shape).astype(x.dtype)
