"""The training and the evaluation step: pure functions of (state, batch).

Neither depends on the number of devices. A step that runs on a shard of the batch gets the name of
the axis over which it is mapped, and sums over that axis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import optax

from nfllm.config import Config
from nfllm.data.batches import Batch
from nfllm.model.decoder import Decoder
from nfllm.model.intermediates import BY_PRODUCTS, ENTROPY, LOGIT_MAX, UPDATES
from nfllm.model.layers import ATTENTION_BLOCKS, BLOCKS, join_layers
from nfllm.model.parameters import Params, Variables
from nfllm.training.auxiliary import Auxiliary
from nfllm.training.loss import count_targets
from nfllm.training.objective import (
    Forward,
    MicroBatch,
    make_objective,
    micro_batch_weights,
    run_forward,
)
from nfllm.training.qk_clip import clip_qk
from nfllm.training.removal import make_gating
from nfllm.training.schedules import Schedule
from nfllm.training.state import Guard, LossScale, TrainState
from nfllm.training.updates import has_statistics, with_statistics

Tree = TypeVar("Tree")
Update = Callable[[TrainState], TrainState]


class StepMetrics(NamedTuple):
    """The measurements of one training step.

    `grad_norm` is the L2 norm before clipping; `finite` is whether loss and gradients were finite;
    `tripped` is whether the step changed nothing (`Guard`); `micro_losses` are the mean losses of
    the micro-batches, in nats per target; `loss_scale` is the factor of the loss, 1 except for
    float16; `auxiliary` are the auxiliary losses, means over sequences, without their weights. With
    `telemetry.entropy_every_step`, `entropy_LH` is the attention entropy in nats, a mean over
    sequences and queries; with that or QK-clip, `logit_max_LH` is the largest scaled logit; with
    `telemetry.gradient_norms`, `grad_norm_L` is the norm of each layer's gradient.
    """

    loss_nats: jax.Array
    grad_norm: jax.Array
    learning_rate: jax.Array
    num_targets: jax.Array
    finite: jax.Array
    tripped: jax.Array
    micro_losses: jax.Array  # [A]
    loss_scale: jax.Array
    auxiliary: dict[str, jax.Array]
    entropy_LH: jax.Array | None
    logit_max_LH: jax.Array | None
    grad_norm_L: jax.Array | None


class _Measured(NamedTuple):
    """Measurements of a micro-batch beside its gradients; `updates` are for `with_statistics`."""

    loss: jax.Array
    auxiliary: dict[str, jax.Array]
    entropy_LH: jax.Array | None
    logit_max_LH: jax.Array | None
    updates: Variables


class EvalSums(NamedTuple):
    """Summed loss in nats and number of targets of one evaluation batch."""

    loss_nats: jax.Array
    num_targets: jax.Array


class TrainStep(Protocol):
    """A pure training step; `axis_name` is the mapped axis over which B is split."""

    def __call__(
        self, state: TrainState, batch: Batch, *, axis_name: str | None = None
    ) -> tuple[TrainState, StepMetrics]:
        """Trains on the micro-batches `batch`, tokens and labels [A, B, T]."""


class EvalStep(Protocol):
    """A pure evaluation step; `axis_name` as for `TrainStep`."""

    def __call__(self, params: Params, batch: Batch, *, axis_name: str | None = None) -> EvalSums:
        """Sums the loss of `batch`, tokens and labels [B, T], without dropout."""


def make_train_step(
    config: Config,
    model: Decoder,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    auxiliaries: tuple[Auxiliary, ...] = (),
) -> TrainStep:
    """The training step of a config.

    The gradients of the A micro-batches, each loss weighted by `micro_batch_weights`, are summed
    over micro-batches and devices. A step that is not finite trips the guard, so that later steps
    change nothing. The caller, who reads metrics one step late, still finds the state before the
    bad step, and continues with `leave_out_step` or `open_guard`.
    """
    objective = make_objective(model, config.training, auxiliaries)
    gating = make_gating(config)
    reports, limit = config.telemetry.entropy_every_step, config.optimizer.qk_clip
    by_products = (BY_PRODUCTS,) if reports or limit is not None else ()
    grad_of = jax.value_and_grad(objective, has_aux=True)

    def train_step(
        state: TrainState, batch: Batch, *, axis_name: str | None = None
    ) -> tuple[TrainState, StepMetrics]:
        tokens_ABT, labels_ABT = map(jnp.asarray, batch)
        targets_A = _sum_over_devices(jax.vmap(count_targets)(labels_ABT), axis_name)
        weights_A = micro_batch_weights(targets_A, config.optimizer.accumulation_weighting)
        scale = jnp.float32(1.0) if state.loss_scale is None else state.loss_scale.factor
        num_micro_batches, rows, _ = tokens_ABT.shape
        rows_AB = _global_rows(num_micro_batches, rows, axis_name)
        share = 1.0 / (num_micro_batches * rows * _num_devices(axis_name))
        shares_A = jnp.full(num_micro_batches, share, jnp.float32)
        micro_batches = MicroBatch(tokens_ABT, labels_ABT, rows_AB, weights_A, shares_A)
        collect = (*by_products, UPDATES) if has_statistics(state.params) else by_products

        def gradients(micro_batch: MicroBatch) -> tuple[Params, _Measured]:
            (_, forward), grads = grad_of(state.params, micro_batch, state.step, scale, collect)
            return grads, _measured(forward)

        def accumulate(grads: Params, micro_batch: MicroBatch) -> tuple[Params, _Measured]:
            new, measured = gradients(micro_batch)
            return jax.tree.map(jnp.add, grads, new), measured

        if num_micro_batches == 1:
            grads, measured = gradients(jax.tree.map(lambda x: x[0], micro_batches))
            measured = jax.tree.map(lambda x: x[None], measured)
        else:
            zeros = jax.tree.map(jnp.zeros_like, state.params)
            grads, measured = jax.lax.scan(accumulate, zeros, micro_batches)

        losses_A, grads = _sum_over_devices((measured.loss, grads), axis_name)
        grads = jax.tree.map(lambda g: g / scale, grads)
        grad_norm = optax.tree.norm(grads)
        loss = jnp.sum(losses_A * weights_A)
        updates_finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        finite = _is_sound(loss, updates_finite, state.loss_scale)
        logit_max_LH = _max_over_devices(measured.logit_max_LH, axis_name)

        def update(state: TrainState) -> TrainState:
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            statistics = _mean_over_devices(measured.updates, axis_name)
            params = gating(with_statistics(params, statistics), state.step + 1)
            if limit is not None and logit_max_LH is not None:
                params = clip_qk(params, logit_max_LH, limit, config.model)
            return state.replace(params=params, opt_state=opt_state)

        new_state, tripped = _guarded(state, update, updates_finite, finite)
        auxiliary_A = _sum_over_devices(measured.auxiliary, axis_name)
        return new_state, StepMetrics(
            loss_nats=loss,
            grad_norm=grad_norm,
            learning_rate=schedule(state.step - state.skipped),
            num_targets=jnp.sum(targets_A),
            finite=finite,
            tripped=tripped,
            micro_losses=losses_A / jnp.maximum(targets_A, 1),
            loss_scale=scale,
            auxiliary=jax.tree.map(lambda sum_A: jnp.sum(sum_A) * share, auxiliary_A),
            entropy_LH=_mean_over_devices(measured.entropy_LH, axis_name) if reports else None,
            logit_max_LH=logit_max_LH,
            grad_norm_L=_norms(grads) if config.telemetry.gradient_norms else None,
        )

    return train_step


def make_eval_step(model: Decoder, loss_tile_rows: int | None = None) -> EvalStep:
    """The evaluation step of a model; logits are computed in tiles, as in training."""

    def eval_step(params: Params, batch: Batch, *, axis_name: str | None = None) -> EvalSums:
        tokens_BT, labels_BT = map(jnp.asarray, batch)
        loss = run_forward(model, params, tokens_BT, labels_BT, loss_tile_rows).loss
        return _sum_over_devices(EvalSums(loss, count_targets(labels_BT)), axis_name)

    return eval_step


def _guarded(
    state: TrainState, update: Update, updates_finite: jax.Array, finite: jax.Array
) -> tuple[TrainState, jax.Array]:
    """The state after `update(state)`, unless its guard forbids it, and whether nothing changed.

    One gradient that is not finite would make every parameter NaN through the clipping factor. With
    float16 such an update is always left out, since its loss scale overflows by design; the step
    then still counts as `finite`.
    """
    is_open = state.guard == Guard.OPEN
    tripped = (state.guard == Guard.TRIPPED) | ~(finite | is_open)
    applies = ~tripped & (updates_finite | is_open)
    new = jax.lax.cond(applies, update, lambda state: state, state)
    scale = state.loss_scale
    if scale is not None:
        scale = jax.tree.map(
            lambda old, new: jnp.where(tripped, old, new), scale, scale.after(updates_finite)
        )
    watching = jnp.where(finite, Guard.WATCHING, state.guard)
    new = new.replace(
        step=state.step + ~tripped,
        skipped=state.skipped + (~tripped & ~applies),
        loss_scale=scale,
        guard=jnp.where(tripped, Guard.TRIPPED, watching).astype(state.guard.dtype),
    )
    return new, tripped


def _is_sound(loss: jax.Array, updates_finite: jax.Array, scale: LossScale | None) -> jax.Array:
    """Whether the step counts as finite; an overflow by the loss scale alone is not a fault."""
    if scale is None:
        return updates_finite
    return jnp.isfinite(loss) & (updates_finite | (scale.factor > 1.0))


def _measured(forward: Forward) -> _Measured:
    found = forward.collected
    layers = join_layers(found[BY_PRODUCTS]) if BY_PRODUCTS in found else {}
    return _Measured(
        forward.loss,
        forward.auxiliary,
        layers.get(ENTROPY),
        layers.get(LOGIT_MAX),
        found.get(UPDATES, {}),
    )


def _norms(grads: Params) -> jax.Array:
    """The L2 norm of each layer's gradient, [L]."""

    def squares(blocks: Params) -> jax.Array:
        leaves = jax.tree.leaves(blocks)
        return sum((jnp.sum(jnp.square(g), axis=range(1, g.ndim)) for g in leaves), jnp.zeros(()))

    stacks = [squares(grads[name]) for name in (BLOCKS, ATTENTION_BLOCKS) if name in grads]
    return jnp.sqrt(jnp.concatenate(stacks))


def _sum_over_devices(tree: Tree, axis_name: str | None) -> Tree:
    if axis_name is None:
        return tree
    summed: Tree = jax.lax.psum(tree, axis_name)
    return summed


def _mean_over_devices(tree: Any, axis_name: str | None) -> Any:
    """Mean over micro-batches and devices, which all have the same number of sequences."""
    tree = jax.tree.map(lambda x_A: jnp.mean(x_A, axis=0), tree)
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def _max_over_devices(x_ALH: jax.Array | None, axis_name: str | None) -> jax.Array | None:
    """Maximum over micro-batches and devices."""
    if x_ALH is None:
        return None
    x_LH = jnp.max(x_ALH, axis=0)
    return x_LH if axis_name is None else jax.lax.pmax(x_LH, axis_name)


def _num_devices(axis_name: str | None) -> int:
    return 1 if axis_name is None else jax.lax.axis_size(axis_name)


def _global_rows(num_micro_batches: int, rows: int, axis_name: str | None) -> jax.Array:
    """Index [A, B] of each local sequence in the step's global batch, [A, devices, B] flattened."""
    devices = _num_devices(axis_name)
    device = jnp.int32(0) if axis_name is None else jax.lax.axis_index(axis_name)
    places_A1 = jnp.arange(num_micro_batches)[:, None] * devices + device
    return places_A1 * rows + jnp.arange(rows)[None]
