"""Parameters: their type, and those that start at a constant."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

Params = dict[str, Any]
"""A decoder's parameters, or their gradients: a nested dictionary of arrays by name."""
Variables = dict[str, Any]
"""The collections of variables that a module is applied to, by name; `params` is one."""


def constant_param(
    module: nn.Module, name: str, value: float, shape: tuple[int, ...] = ()
) -> jax.Array:
    """A float32 parameter of `module` that starts at `value`, and takes no random key.

    `module.param` counts the keys of a module, one for each parameter, and so a bias or a learned
    slope would change the start of the matrices beside it. This way models of equal seed start
    equal in all that they have in common.
    """
    return module.variable("params", name, lambda: jnp.full(shape, value, jnp.float32)).value
