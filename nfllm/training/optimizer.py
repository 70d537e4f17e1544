"""The optimizer: clipping, AdamW in two variants or Muon, and the parameters that decay."""

import jax
import jax.numpy as jnp
import optax

from nfllm.config import OptimizerConfig
from nfllm.model.parameters import Kind, Params, Path, kind_of, name_of
from nfllm.training.hf_adamw import hf_adamw
from nfllm.training.muon import muon
from nfllm.training.schedules import Schedule

# torch.nn.utils.clip_grad_norm_ divides by norm + 1e-6.
_CLIP_EPSILON = 1e-6


def decay_mask(params: Params, *, decay_slopes: bool) -> Params:
    """True for each parameter that weight decay acts on, by its declared kind (`kind_of`).

    Kernels and embeddings decay; biases and the parameters of normalizations do not; learned slopes
    decay only with `decay_slopes`.
    """

    def decays(path: Path, _: jax.Array) -> bool:
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
        names[decays].append(name_of(path))
    return tuple(names[True]), tuple(names[False])


def make_optimizer(config: OptimizerConfig, schedule: Schedule) -> optax.GradientTransformation:
    """Clipping by global norm, then the chosen variant with weight decay by `decay_mask`."""

    def mask(params: Params) -> Params:
        return decay_mask(params, decay_slopes=config.decay_slopes)

    adam = hf_adamw if config.variant == "hf_adamw" else optax.adamw
    optimizer = adam(
        schedule,
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        mask=mask,
    )
    if config.variant == "muon":
        optimizer = muon(config, schedule, mask, optimizer)
    if config.clip_norm == 0:
        return optimizer
    return optax.chain(clip_by_global_norm(config.clip_norm), optimizer)


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """g * min(1, max_norm / (‖g‖ + 1e-6)), ‖g‖ the L2 norm over all parameters."""

    def clip(grads: Params, _: Params | None) -> Params:
        factor = jnp.minimum(1.0, max_norm / (optax.tree.norm(grads) + _CLIP_EPSILON))
        return jax.tree.map(lambda g: g * factor, grads)

    return optax.stateless(clip)
