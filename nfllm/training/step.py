"""The training and the evaluation step: pure functions of (state, batch).

Neither knows how many devices there are. A step that runs on a slice of the batch gets the name of
the axis over which `parallel.py` mapped it, and sums over that axis.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nfllm.config import OptimizerConfig, TrainingConfig
from nfllm.model.decoder import Decoder
from nfllm.model.intermediates import BY_PRODUCTS, ENTROPY
from nfllm.training.loss import count_targets
from nfllm.training.objective import (
    Forward,
    MicroBatch,
    make_objective,
    micro_batch_weights,
    run_forward,
)
from nfllm.training.schedules import Schedule
from nfllm.training.state import LossScale, TrainState

# As torch.cuda.amp.GradScaler: halve on overflow, double after 2000 finite steps.
_LOSS_SCALE_GROWTH_STEPS = 2000


class StepMetrics(NamedTuple):
    """What one training step tells.

    `grad_norm` is the L2 norm before clipping; `finite` is whether loss and gradients all were;
    `micro_losses` are the mean losses of the micro-batches, in nats per target; `loss_scale` is the
    factor by which the loss was scaled, 1 but for float16; `entropy_LH` is the attention entropy in
    nats, a mean over sequences and queries, where the step was made with it.
    """

    loss_nats: jax.Array
    grad_norm: jax.Array
    learning_rate: jax.Array
    num_targets: jax.Array
    finite: jax.Array
    micro_losses: jax.Array  # [A]
    loss_scale: jax.Array
    entropy_LH: jax.Array | None


class EvalSums(NamedTuple):
    """Summed loss in nats and number of targets of one evaluation batch."""

    loss_nats: jax.Array
    num_targets: jax.Array


def make_train_step(
    model: Decoder,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    optimizer_config: OptimizerConfig,
    training_config: TrainingConfig,
    *,
    with_entropy: bool = False,
) -> Callable[..., tuple[TrainState, StepMetrics]]:
    """Returns `train_step(state, tokens_ABT, labels_ABT, previous_finite, force, *, axis_name)`.

    A counts micro-batches; their gradients are summed inside the step, each loss times its weight
    (`micro_batch_weights`). With `axis_name`, B is this device's share, and sums run over all
    devices.

    A caller that reads metrics one step late finds the parameters of a step that was not finite as
    they were: the step after it gets `previous_finite=False` and leaves the state unchanged, and so
    does, with `training.non_finite=continue`, the step itself unless it gets `force=True`. By
    default nothing is held back.
    """
    objective = make_objective(model, training_config)

    def train_step(
        state: TrainState,
        tokens_ABT: jax.Array,
        labels_ABT: jax.Array,
        previous_finite: jax.Array | bool = True,
        force: jax.Array | bool = True,
        *,
        axis_name: str | None = None,
    ) -> tuple[TrainState, StepMetrics]:
        targets_A = _sum_over_devices(jax.vmap(count_targets)(labels_ABT), axis_name)
        weights_A = micro_batch_weights(targets_A, optimizer_config.accumulation_weighting)
        scale = jnp.float32(1.0) if state.loss_scale is None else state.loss_scale.factor
        num_micro_batches, rows, _ = tokens_ABT.shape
        rows_AB = _global_rows(num_micro_batches, rows, axis_name)
        micro_batches = MicroBatch(tokens_ABT, labels_ABT, rows_AB, weights_A)
        collect = (BY_PRODUCTS,) if with_entropy else ()
        grad_of = jax.value_and_grad(objective, has_aux=True)

        def told_by(forward: Forward) -> tuple[jax.Array, jax.Array | None]:
            attention = forward.collected[BY_PRODUCTS]["blocks"]["attention"] if collect else {}
            return forward.loss, attention.get(ENTROPY)

        def accumulate(grads: Any, micro_batch: MicroBatch) -> tuple[Any, Any]:
            (_, forward), new = grad_of(state.params, micro_batch, state.step, scale, collect)
            return jax.tree.map(jnp.add, grads, new), told_by(forward)

        if num_micro_batches == 1:
            first = jax.tree.map(lambda x: x[0], micro_batches)
            (_, forward), grads = grad_of(state.params, first, state.step, scale, collect)
            losses_A, entropy_ALH = jax.tree.map(lambda x: x[None], told_by(forward))
        else:
            zeros = jax.tree.map(jnp.zeros_like, state.params)
            grads, (losses_A, entropy_ALH) = jax.lax.scan(accumulate, zeros, micro_batches)

        losses_A, grads = _sum_over_devices((losses_A, grads), axis_name)
        grads = jax.tree.map(lambda g: g / scale, grads)
        grad_norm = optax.tree.norm(grads)
        loss = jnp.sum(losses_A * weights_A)
        updates_finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        metrics = StepMetrics(
            loss_nats=loss,
            grad_norm=grad_norm,
            learning_rate=schedule(state.step - state.skipped),
            num_targets=jnp.sum(targets_A),
            finite=_is_healthy(loss, updates_finite, state.loss_scale),
            micro_losses=losses_A / jnp.maximum(targets_A, 1),
            loss_scale=scale,
            entropy_LH=_mean_over_devices(entropy_ALH, axis_name),
        )

        def apply(state: TrainState) -> TrainState:
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            return state.replace(
                params=optax.apply_updates(state.params, updates), opt_state=opt_state
            )

        def keep(state: TrainState) -> TrainState:
            return state

        # One non-finite gradient would make every parameter NaN through the clipping factor. The
        # state stays good unless the user asked to go on; float16 always skips, since its scale
        # overflows by design.
        applies = updates_finite
        taken = jnp.asarray(previous_finite)
        if training_config.non_finite == "continue":
            applies |= force
            taken &= applies
        state = jax.lax.cond(taken & applies, apply, keep, state)
        return state.replace(
            step=state.step + taken,
            skipped=state.skipped + (taken & ~applies),
            loss_scale=_next_loss_scale(state.loss_scale, updates_finite, taken),
        ), metrics

    return train_step


def make_eval_step(model: Decoder, loss_tile_rows: int | None = None) -> Callable[..., EvalSums]:
    """Returns `eval_step(params, tokens_BT, labels_BT, *, axis_name=None)`, without dropout."""

    def eval_step(
        params: Any, tokens_BT: jax.Array, labels_BT: jax.Array, *, axis_name: str | None = None
    ) -> EvalSums:
        sums = EvalSums(
            run_forward(model, params, tokens_BT, labels_BT, loss_tile_rows).loss,
            count_targets(labels_BT),
        )
        return _sum_over_devices(sums, axis_name)

    return eval_step


def _sum_over_devices(tree: Any, axis_name: str | None) -> Any:
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def _mean_over_devices(x_ALH: jax.Array | None, axis_name: str | None) -> jax.Array | None:
    """Mean over micro-batches and devices, all of which hold equally many sequences."""
    if x_ALH is None:
        return None
    x_LH = jnp.mean(x_ALH, axis=0)
    return x_LH if axis_name is None else jax.lax.pmean(x_LH, axis_name)


def _global_rows(num_micro_batches: int, rows: int, axis_name: str | None) -> jax.Array:
    """Place [A, B] of each local sequence in the step's global batch, [A, devices, B] flattened."""
    devices, device = 1, jnp.int32(0)
    if axis_name is not None:
        devices, device = jax.lax.axis_size(axis_name), jax.lax.axis_index(axis_name)
    places_A1 = jnp.arange(num_micro_batches)[:, None] * devices + device
    return places_A1 * rows + jnp.arange(rows)[None]


def _is_healthy(loss: jax.Array, updates_finite: jax.Array, scale: LossScale | None) -> jax.Array:
    """Whether the step is sound; a scaled gradient that overflows only had too big a scale."""
    if scale is None:
        return updates_finite
    return jnp.isfinite(loss) & (updates_finite | (scale.factor > 1.0))


def _next_loss_scale(
    scale: LossScale | None, finite: jax.Array, taken: jax.Array
) -> LossScale | None:
    if scale is None:
        return None
    finite_steps = jnp.where(finite, scale.finite_steps + 1, 0)
    grows = finite_steps >= _LOSS_SCALE_GROWTH_STEPS
    factor = jnp.where(finite, jnp.where(grows, 2 * scale.factor, scale.factor), scale.factor / 2)
    new = LossScale(factor, jnp.where(grows, 0, finite_steps))
    return jax.tree.map(functools.partial(jnp.where, taken), new, scale)
