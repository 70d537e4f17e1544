"""The registry of normalizations: Flax modules over the last axis of their input.

All compute in float32, and cast their result. LayerNorm and RMSNorm add up squares: they are right
for entries up to 1e18 in absolute value, whose squares float32 can hold.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from nfllm.config import ModelConfig
from nfllm.config.derived import Site
from nfllm.config.names import EVONORM, FROZEN
from nfllm.model.evonorm import EvoNorm
from nfllm.model.frozen_norm import FrozenLayerNorm, frozen_options
from nfllm.model.parameters import Variables
from nfllm.model.pointwise import FUNCTIONS, Pointwise, options_at
from nfllm.model.tuning import tuning


class NoNorm(nn.Module):
    """The identity, cast to `dtype`; it has no parameters."""

    epsilon: float
    dtype: jnp.dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns x, in `dtype`."""
        return x.astype(self.dtype)


_RECOMPUTED: dict[type[nn.Module], type[nn.Module]] = {
    norm: nn.remat(norm, prevent_cse=False) for norm in (nn.LayerNorm, nn.RMSNorm)
}


def _statistical(norm: type[nn.Module], **options: Any) -> nn.Module:
    """A LayerNorm or RMSNorm whose derivative keeps or recomputes its statistics, by `Tuning`."""
    return (_RECOMPUTED[norm] if tuning().recompute_norms else norm)(**options)


# The fast variance E[x²] - E[x]² cancels where the mean is large, as it is in norm-free residuals.
LayerNorm = partial(_statistical, nn.LayerNorm, use_fast_variance=False)
RMSNorm = partial(_statistical, nn.RMSNorm)

NORMALIZATIONS: dict[str, Callable[..., nn.Module]] = {
    "layernorm": LayerNorm,
    "none": NoNorm,
    "rmsnorm": RMSNorm,
    EVONORM: EvoNorm,
    FROZEN: FrozenLayerNorm,
    **{
        name: partial(Pointwise, function=function, has_shift=name != "dyt")
        for name, function in FUNCTIONS.items()
    },
}


def normalization(config: ModelConfig, site: Site, dtype: jnp.dtype, **options: Any) -> nn.Module:
    """The normalization that a config has at a site; `options` are those of a Flax module."""
    name = config.normalization_at(site)
    own: Mapping[str, Any] = options_at(config, site) if name in FUNCTIONS else {}
    if name == EVONORM:
        own = {"groups": config.evonorm_groups}
    if name == FROZEN:
        own = frozen_options(config, site)
    return NORMALIZATIONS[name](epsilon=config.norm_epsilon, dtype=dtype, **own, **options)


def by_site(
    config: ModelConfig, layers: Variables, top: Variables, name: str
) -> dict[str, jax.Array]:
    """A variable of the normalizations by site: [L, ...], without layer axis for the final one.

    Args:
      config: config of the decoder.
      layers: the variables of its blocks, from `join_layers`.
      top: the variables of the decoder itself.
      name: name of a parameter or recorded value. Sites without it are left out.
    """
    found: dict[str, jax.Array] = {}
    for site in config.sites:
        module = f"{site}_norm"
        values = (layers if module in layers else top).get(module, {})
        if name in values:
            found[site] = values[name]
    return found
