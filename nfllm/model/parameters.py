"""Parameters that start at a constant."""

import jax
import jax.numpy as jnp
from flax import linen as nn


def constant_param(
    module: nn.Module, name: str, value: float, shape: tuple[int, ...] = ()
) -> jax.Array:
    """A float32 parameter of `module` that starts at `value`, and takes no random key.

    `module.param` counts the keys of a module, one for each parameter, and so a bias or a learned
    slope would change the start of the matrices beside it. This way models of equal seed start
    equal in all that they have in common.
    """
    return module.variable("params", name, lambda: jnp.full(shape, value, jnp.float32)).value
