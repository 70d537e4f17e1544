"""The optimizer: clipping, AdamW in two variants or Muon, and the parameters that decay."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nfllm.config import OptimizerConfig
from nfllm.model.parameters import Kind, Params, kind_of
from nfllm.training.muon import muon
from nfllm.training.schedules import Schedule

# torch.nn.utils.clip_grad_norm_ divides by norm + 1e-6.
_CLIP_EPSILON = 1e-6


def decay_mask(params: Params, *, decay_slopes: bool) -> Params:
    """True for each parameter that weight decay acts on, by its declared kind (`kind_of`).

    Kernels and embeddings decay; biases and the parameters of normalizations do not; learned slopes
    decay only with `decay_slopes`.
    """

    def decays(path: tuple[Any, ...], _: jax.Array) -> bool:
        kind = kind_of(path)
        return kind is Kind.DECAYED or (kind is Kind.SLOPE and decay_slopes)

    return jax.tree_util.tree_map_with_path(decays, params)


def split_by_decay(
    params: Params, *, decay_slopes: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the parameters that decay and of those that do not, for `config.json`."""
    mask = decay_mask(params, decay_slopes=decay_slopes)
    names: dict[bool, list[str]] = {True: [], False: []}
    for path, decays in jax.tree_util.tree_leaves_with_path(mask):
        names[decays].append(".".join(key.key for key in path))
    return tuple(names[True]), tuple(names[False])


def make_optimizer(config: OptimizerConfig, schedule: Schedule) -> optax.GradientTransformation:
    """Clipping by global norm, then the chosen variant with weight decay by `decay_mask`."""

    def mask(params: Params) -> Any:
        return decay_mask(params, decay_slopes=config.decay_slopes)

    if config.variant == "muon":
        optimizer = muon(config, schedule, mask)
    else:
        variant = {"adamw": optax.adamw, "hf_adamw": hf_adamw}[config.variant]
        optimizer = variant(
            schedule,
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=mask,
        )
    if config.clip_norm == 0:
        return optimizer
    return optax.chain(clip_by_global_norm(config.clip_norm), optimizer)


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """g * min(1, max_norm / (‖g‖ + 1e-6)), ‖g‖ the L2 norm over all parameters."""

    def update(
        updates: Any, state: optax.EmptyState, params: Params | None = None
    ) -> tuple[Any, Any]:
        del params
        factor = jnp.minimum(1.0, max_norm / (optax.tree.norm(updates) + _CLIP_EPSILON))
        return jax.tree.map(lambda g: g * factor, updates), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def _one_minus_power(base: float, exponent: jax.Array) -> jax.Array:
    """1 - base^exponent, for exponents of at least 1.

    In float32, 1 - 0.999 has a relative error of 1e-5.
    """
    return -jnp.expm1(exponent * math.log(base)) if base else jnp.ones_like(exponent)


class HfAdamWState(NamedTuple):
    """Number of updates done, and Adam's two moments."""

    num_updates: jax.Array
    mu: Any
    nu: Any


def hf_adamw(
    schedule: Schedule, *, b1: float, b2: float, eps: float, weight_decay: float, mask: Any
) -> optax.GradientTransformation:
    """AdamW as in `transformers.AdamW`, the optimizer of arXiv 2410.09637's code.

    With t = 1, 2, ...:  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g²;
    p' = p - lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps);  p'' = p' - lr wd p'.
    Unlike in `optax.adamw`, eps is added to sqrt(v) before bias correction, and the decay acts on
    the parameter after the Adam update.

    Args:
      schedule: learning rate of update t - 1.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: added to sqrt(v).
      weight_decay: wd, for the parameters that `mask` selects.
      mask: function of the parameters, a tree of booleans.
    """

    def init(params: Params) -> HfAdamWState:
        zeros = optax.tree.zeros_like(params)
        return HfAdamWState(jnp.zeros((), jnp.int32), zeros, zeros)

    def update(
        grads: Params, state: HfAdamWState, params: Params | None = None
    ) -> tuple[Any, HfAdamWState]:
        num_updates = state.num_updates + 1
        t = num_updates.astype(jnp.float32)
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, grads)
        rate = schedule(state.num_updates)
        size = rate * jnp.sqrt(_one_minus_power(b2, t)) / _one_minus_power(b1, t)

        def change(p: jax.Array, m: jax.Array, v: jax.Array, decays: bool) -> jax.Array:
            moved = -size * m / (jnp.sqrt(v) + eps)
            return moved - rate * weight_decay * (p + moved) if decays else moved

        return jax.tree.map(change, params, mu, nu, mask(params)), HfAdamWState(num_updates, mu, nu)

    return optax.GradientTransformation(init, update)
