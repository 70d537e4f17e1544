"""Point functions in place of a normalization, without statistics: DyT, Derf and similar ones."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from nfllm.analysis import saturation
from nfllm.config import ModelConfig
from nfllm.config.derived import Site
from nfllm.model.intermediates import INTERMEDIATES, SATURATION, record_statistic


def isru(x: jax.Array) -> jax.Array:
    """x / sqrt(1 + x²)."""
    bounded = jnp.clip(x, -1e18, 1e18)  # beyond, the square overflows, and the result is ±1
    return bounded / jnp.sqrt(1 + bounded * bounded)


def arctan(x: jax.Array) -> jax.Array:
    """2/π times the arctangent of x: from -1 to 1."""
    return 2 / jnp.pi * jnp.arctan(x)


def hardtanh(x: jax.Array) -> jax.Array:
    """x clipped to [-1, 1]."""
    return jnp.where(jnp.abs(x) <= 1, x, jnp.sign(x))


def expsign(x: jax.Array) -> jax.Array:
    """sign(x) (1 - exp(-|x|))."""
    # In two halves, because the derivative of sign(x) and |x| at 0 would be 0 in place of 1.
    return jnp.expm1(jnp.minimum(x, 0)) - jnp.expm1(-jnp.maximum(x, 0))


FUNCTIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "dyt": jnp.tanh,  # arXiv 2503.10622
    "derf": jax.lax.erf,  # this and the following: the code of Derf
    "isru": isru,
    "arctan": arctan,
    "hardtanh": hardtanh,
    "expsign": expsign,
}


class Pointwise(nn.Module):
    """scale * f(alpha * x + shift) + bias, elementwise: a normalization without statistics.

    `alpha` is one scalar that starts at `alpha_start`; `scale` and `bias` are per feature. With
    f = tanh and no shift it is DyT (arXiv 2503.10622, equation 1); with f = erf and a scalar shift
    it is Derf.
    """

    epsilon: float
    dtype: jnp.dtype
    function: Callable[[jax.Array], jax.Array]
    has_shift: bool
    alpha_start: float = 0.5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., D] to [..., D], in `dtype`."""
        width = x.shape[-1:]
        alpha = self.param("alpha", nn.initializers.constant(self.alpha_start), ())
        scale = self.param("scale", nn.initializers.ones, width)
        bias = self.param("bias", nn.initializers.zeros, width)
        y = alpha * x.astype(jnp.float32)
        if self.has_shift:
            y = y + self.param("shift", nn.initializers.zeros, ())
        record_statistic(self, SATURATION, lambda: saturation(y))
        record_statistic(self, SATURATION, lambda: saturation(y, keep=1), INTERMEDIATES)
        leading = (None,) * (x.ndim - 1)
        return (scale[leading] * self.function(y) + bias[leading]).astype(self.dtype)


def options_at(config: ModelConfig, site: Site) -> dict[str, float | bool]:
    """The options of the point function that a config has at a site."""
    found: dict[str, float | bool] = {"alpha_start": config.alpha_at(site)}
    return found if config.dyt_shift is None else {**found, "has_shift": config.dyt_shift}
