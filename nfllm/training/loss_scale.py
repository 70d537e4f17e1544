"""The factor of the loss in float16, without which small gradients would be rounded to zero."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

# Halved on overflow and doubled after 2000 finite steps, as in torch.cuda.amp.GradScaler, which
# starts at 2**16.
_FIRST_LOSS_SCALE = 2.0**15
_GROWTH_STEPS = 2000


class LossScale(struct.PyTreeNode):
    """Dynamic loss scale of float16: the factor, and finite steps since it last changed."""

    factor: jax.Array
    finite_steps: jax.Array

    def after(self, finite: jax.Array | bool) -> LossScale:
        """The scale for the next step, given whether the gradients of this step were finite."""
        finite_steps = jnp.where(finite, self.finite_steps + 1, 0)
        grows = finite_steps >= _GROWTH_STEPS
        grown = jnp.where(grows, 2 * self.factor, self.factor)
        return LossScale(
            jnp.where(finite, grown, self.factor / 2), jnp.where(grows, 0, finite_steps)
        )


def first_loss_scale(dtype: jnp.dtype) -> LossScale | None:
    """The scale of the first step; None except for float16."""
    return LossScale(jnp.float32(_FIRST_LOSS_SCALE), jnp.int32(0)) if dtype == jnp.float16 else None
