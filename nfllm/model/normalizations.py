"""The registry of normalizations: Flax modules over the last axis of their input.

All compute in float32, and cast what they return. Layer and RMS norms add up squares: they are
right for entries up to 1e18 in size, whose squares float32 can hold.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from nfllm.config import ModelConfig
from nfllm.config.derived import Site
from nfllm.model.frozen_norm import FROZEN, FrozenLayerNorm, frozen_options
from nfllm.model.tuning import tuning


class NoNorm(nn.Module):
    """The identity, cast to `dtype`; it has no parameters."""

    epsilon: float
    dtype: jnp.dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns x, in `dtype`."""
        return x.astype(self.dtype)


class Pointwise(nn.Module):
    """scale * f(alpha * x + shift) + bias, elementwise: a normalization without statistics.

    `alpha` is one scalar that starts at 1/2; `scale` and `bias` are per feature. With f = tanh and
    no shift it is DyT (arXiv 2503.10622, equation 1); with f = erf and a scalar shift it is Derf.
    """

    epsilon: float
    dtype: jnp.dtype
    function: Callable[[jax.Array], jax.Array]
    has_shift: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., D] to [..., D], in `dtype`."""
        width = x.shape[-1:]
        alpha = self.param("alpha", nn.initializers.constant(0.5), ())
        scale = self.param("scale", nn.initializers.ones, width)
        bias = self.param("bias", nn.initializers.zeros, width)
        y = alpha * x.astype(jnp.float32)
        if self.has_shift:
            y = y + self.param("shift", nn.initializers.zeros, ())
        leading = (None,) * (x.ndim - 1)
        return (scale[leading] * self.function(y) + bias[leading]).astype(self.dtype)


_RECOMPUTED: dict[type[nn.Module], type[nn.Module]] = {
    norm: nn.remat(norm, prevent_cse=False) for norm in (nn.LayerNorm, nn.RMSNorm)
}


def _statistical(norm: type[nn.Module], **options: Any) -> nn.Module:
    """A LayerNorm or RMSNorm whose derivative keeps its statistics, or computes them again."""
    return (_RECOMPUTED[norm] if tuning().recompute_norms else norm)(**options)


# The fast variance E[x²] - E[x]² cancels where the mean is large, as it is in norm-free residuals.
LayerNorm = partial(_statistical, nn.LayerNorm, use_fast_variance=False)
RMSNorm = partial(_statistical, nn.RMSNorm)

NORMALIZATIONS: dict[str, Callable[..., nn.Module]] = {
    "layernorm": LayerNorm,
    "none": NoNorm,
    "rmsnorm": RMSNorm,
    "dyt": partial(Pointwise, function=jnp.tanh, has_shift=False),
    "derf": partial(Pointwise, function=jax.lax.erf, has_shift=True),
    FROZEN: FrozenLayerNorm,
}


def normalization(config: ModelConfig, site: Site, dtype: jnp.dtype, **options: Any) -> nn.Module:
    """The normalization that a config has at a site; `options` are those of a Flax module."""
    name = config.normalization_at(site)
    if name == FROZEN:
        options |= frozen_options(config, site)
    norm = NORMALIZATIONS[name]
    return norm(epsilon=config.norm_epsilon, dtype=dtype, **options)
