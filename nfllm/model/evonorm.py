"""EvoNorm-S0 of each token: a normalization and activation in one."""

import jax
import jax.numpy as jnp
from flax import linen as nn


class EvoNorm(nn.Module):
    """x sigmoid(v x) / sqrt(Var + epsilon) * scale + bias (arXiv 2004.02967, EvoNorm-S0).

    `Var` is the biased variance of a group of a token's features about their mean, while the
    numerator is not centred. In the paper groups also extend over positions, which would break
    causality here. `gate`, the v of the paper, `scale` and `bias` are per feature, and start at 1,
    1 and 0. It computes in float32, and is right for entries up to 1e18 in absolute value. As the
    activation of an MLP it replaces normalization and nonlinearity between its matrices, which is
    what the paper made it for.

    Attributes:
      epsilon: added to the variance.
      dtype: type of the result.
      groups: number of groups of equal size; it must divide the number of features.
    """

    epsilon: float
    dtype: jnp.dtype
    groups: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., D] to [..., D], in `dtype`."""
        width = x.shape[-1:]
        gate = self.param("gate", nn.initializers.ones, width)
        scale = self.param("scale", nn.initializers.ones, width)
        bias = self.param("bias", nn.initializers.zeros, width)
        leading = (None,) * (x.ndim - 1)
        x32 = x.astype(jnp.float32)
        by_group = x32.reshape(*x.shape[:-1], self.groups, -1)
        deviation = jnp.sqrt(by_group.var(-1, keepdims=True) + self.epsilon)
        gated = x32 * jax.nn.sigmoid(gate[leading] * x32)
        y = (gated.reshape(by_group.shape) / deviation).reshape(x.shape)
        return (scale[leading] * y + bias[leading]).astype(self.dtype)
