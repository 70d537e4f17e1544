"""LayerNorm whose standard deviation can be a measured constant, so that it can be removed.

    y = (x - mean(x)) (g / sqrt(var(x) + epsilon) + (1 - g) / sigma) scale + bias

With gate g = 1 it is LayerNorm. With g = 0 it is the FakeLN of arXiv 2507.02559, which is affine in
x, so that `nfllm.fold` can fold it into the matrices. Values between are the taper of 2602.10408
(there of RMSNorm). Gate and sigma are statistics, which no gradient changes: while g is 1, sigma is
a moving average of the stream's mean deviation; g follows the config section `removal`
(`nfllm.training.removal`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from nfllm.config import ModelConfig
from nfllm.config.derived import Site
from nfllm.config.names import FROZEN
from nfllm.model.cache import positions, start_of
from nfllm.model.intermediates import LOSSES, record_statistic, record_update
from nfllm.model.parameters import constant_param

GATE, SIGMA = "norm_gate", "sigma"
QUERY_KEY, VALUE = 0, 1
"""Paths of the norm before attention, which are frozen at different steps."""

DEVIATION = "deviation"
"""Name under which the norm records the deviation of every position, [B, T], for a loss."""


class FrozenLayerNorm(nn.Module):
    """See the module. `scale` and `bias` are [D], `norm_gate` is [P], with one entry for each path.

    Attributes:
      epsilon: added to the variance.
      dtype: type of the result.
      paths: P, 2 before attention (`QUERY_KEY`, `VALUE`), 1 elsewhere.
      first_position: whether position 0 has its own sigma: `sigma` is then [P, 2], for position 0
        and the others; otherwise [P]. A sigma of 0 has not been measured yet, and counts as 1.
      momentum: weight of the old sigma in the moving average.
    """

    epsilon: float
    dtype: jnp.dtype
    paths: int = 1
    first_position: bool = False
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: jax.Array, path: int = 0) -> jax.Array:
        """Maps [..., D] to [..., D], in `dtype`, with gate and sigma of the path."""
        scale = constant_param(self, "scale", 1.0, x.shape[-1:])
        bias = constant_param(self, "bias", 0.0, x.shape[-1:])
        gate_P = constant_param(self, GATE, 0.0, (self.paths,))
        each = (self.paths, 2) if self.first_position else (self.paths,)
        sigma = constant_param(self, SIGMA, 0.0, each)

        x = x.astype(jnp.float32)
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        deviation = jnp.sqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + self.epsilon)
        record_update(self, SIGMA, lambda: self._next(sigma, gate_P, deviation[..., 0]))
        record_statistic(self, DEVIATION, lambda: deviation[..., 0], LOSSES)

        gate = jax.lax.stop_gradient(gate_P[path])
        frozen = jax.lax.stop_gradient(self._at_positions(measured(sigma)[path], x))
        factor = gate / deviation + (1.0 - gate) / frozen
        leading = (None,) * (x.ndim - 1)
        return (centred * factor * scale[leading] + bias[leading]).astype(self.dtype)

    def _at_positions(self, sigma: jax.Array, x: jax.Array) -> jax.Array:
        """The sigma of every position of x, `[..., T, D]`, in a shape that broadcasts against x."""
        if not self.first_position:
            return sigma
        is_first = positions(x.shape[-2], start_of(self)) == 0
        sigma_BTD = jnp.where(is_first, sigma[0], sigma[1])[..., None]  # its B and D may be 1
        return sigma_BTD[0] if x.ndim == 2 else sigma_BTD[(None,) * (x.ndim - 3)]

    def _next(self, sigma: jax.Array, gate_P: jax.Array, deviation_BT: jax.Array) -> jax.Array:
        found = jnp.mean(deviation_BT)
        if self.first_position:
            found = jnp.stack([jnp.mean(deviation_BT[:, 0]), jnp.mean(deviation_BT[:, 1:])])[None]
        average = self.momentum * sigma + (1.0 - self.momentum) * found
        is_real = gate_P == 1.0
        is_real = is_real[:, None] if self.first_position else is_real
        return jnp.where(is_real, jnp.where(sigma > 0, average, found), sigma)


def final_norm_factor(norm: dict[str, jax.Array], x_BTD: jax.Array, epsilon: float) -> jax.Array:
    """g / sqrt(var(x) + epsilon) + (1 - g) / sigma, with a final norm's parameters, [B, T, 1]."""
    deviation = jnp.sqrt(jnp.var(x_BTD, axis=-1, keepdims=True) + epsilon)
    gate, sigma = norm[GATE][0], measured(norm[SIGMA])[0]
    if sigma.ndim:  # of the first position, and of the others
        is_first = jnp.arange(x_BTD.shape[1]) == 0
        sigma = jnp.where(is_first, sigma[0], sigma[1])[None, :, None]
    return gate / deviation + (1.0 - gate) / sigma


def measured(sigma: jax.Array) -> jax.Array:
    """The deviations by which a frozen norm divides: 1 if not measured yet."""
    return jnp.where(sigma > 0, sigma, 1.0)


def frozen_options(config: ModelConfig, site: Site) -> dict[str, object]:
    """The fields of the module at a site, besides those of all normalizations."""
    return {
        "paths": 2 if site == "attention" else 1,
        "first_position": config.frozen_first_position,
        "momentum": config.frozen_momentum,
    }


def value_input(config: ModelConfig, norm: nn.Module, x_BTD: jax.Array) -> jax.Array | None:
    """The input of values, if it differs from that of queries and keys; otherwise None."""
    return norm(x_BTD, VALUE) if config.normalization_at("attention") == FROZEN else None
