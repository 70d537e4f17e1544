"""The training step: a pure function of (state, batch).

It does not depend on the number of devices. A step that runs on a shard of the batch gets the name
of the axis over which it is mapped, and sums over that axis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from nfllm.config import Config
from nfllm.data.batches import Batch
from nfllm.model.decoder import Decoder
from nfllm.model.intermediates import BY_PRODUCTS, UPDATES
from nfllm.model.parameters import Params
from nfllm.training.auxiliary import Auxiliary
from nfllm.training.devices import (
    global_rows,
    max_over_step,
    mean_over_step,
    num_devices,
    sum_over_devices,
)
from nfllm.training.guard import apply_guarded, is_sound
from nfllm.training.loss import count_targets
from nfllm.training.measured import Measured, grad_norm_by_layer, measured_of
from nfllm.training.objective import MicroBatch, Objective, micro_batch_weights
from nfllm.training.qk_clip import clip_qk
from nfllm.training.removal import make_gating
from nfllm.training.schedules import Schedule
from nfllm.training.state import TrainState
from nfllm.training.updates import (
    has_statistics,
    with_statistics,
    without_gradients_of_statistics,
)


class StepMetrics(NamedTuple):
    """The measurements of one training step.

    `grad_norm` is the L2 norm before clipping; `finite` is whether loss and gradients were finite,
    or in float16 the loss alone while the loss scale was above 1 (`is_sound`); `tripped` is whether
    the step changed nothing (`Guard`); `micro_losses` are the mean losses of the micro-batches, in
    nats per target; `loss_scale` is the factor of the loss, 1 except for float16; `auxiliary` are
    the auxiliary losses, means over sequences, without their weights. With
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


class TrainStep(Protocol):
    """A pure training step; `axis_name` is the mapped axis over which B is split."""

    def __call__(
        self, state: TrainState, batch: Batch, *, axis_name: str | None = None
    ) -> tuple[TrainState, StepMetrics]:
        """Trains on the micro-batches `batch`, tokens and labels [A, B, T]."""


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
    objective = Objective(model, config.training, auxiliaries)
    gating = make_gating(config)
    reports, limit = config.telemetry.entropy_every_step, config.optimizer.qk_clip
    by_products = (BY_PRODUCTS,) if reports or limit is not None else ()
    grad_of = jax.value_and_grad(objective, has_aux=True)

    def train_step(
        state: TrainState, batch: Batch, *, axis_name: str | None = None
    ) -> tuple[TrainState, StepMetrics]:
        tokens_ABT, labels_ABT = map(jnp.asarray, batch)
        targets_A = sum_over_devices(jax.vmap(count_targets)(labels_ABT), axis_name)
        weights_A = micro_batch_weights(targets_A, config.optimizer.accumulation_weighting)
        scale = jnp.float32(1.0) if state.loss_scale is None else state.loss_scale.factor
        num_micro_batches, rows, _ = tokens_ABT.shape
        rows_AB = global_rows(num_micro_batches, rows, axis_name)
        share = 1.0 / (num_micro_batches * rows * num_devices(axis_name))
        shares_A = jnp.full(num_micro_batches, share, jnp.float32)
        micro_batches = MicroBatch(tokens_ABT, labels_ABT, rows_AB, weights_A, shares_A)
        collect = (*by_products, UPDATES) if has_statistics(state.params) else by_products

        def gradients(micro_batch: MicroBatch) -> tuple[Params, Measured]:
            (_, forward), grads = grad_of(state.params, micro_batch, state.step, scale, collect)
            return grads, measured_of(forward)

        grads, measured = _summed(gradients, micro_batches, state.params)
        losses_A, grads = sum_over_devices((measured.loss, grads), axis_name)
        grads = without_gradients_of_statistics(jax.tree.map(lambda g: g / scale, grads))
        grad_norm = optax.tree.norm(grads)
        loss = jnp.sum(losses_A * weights_A)
        updates_finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        finite = is_sound(loss, updates_finite, state.loss_scale)
        logit_max_LH = max_over_step(measured.logit_max_LH, axis_name)

        def update(state: TrainState) -> TrainState:
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            statistics = mean_over_step(measured.updates, axis_name)
            params = with_statistics(params, statistics)
            if limit is not None and logit_max_LH is not None:
                params = clip_qk(params, logit_max_LH, limit, config.model)
            return state.replace(params=params, opt_state=opt_state)

        new_state, tripped = apply_guarded(state, update, updates_finite, finite)
        # Outside of the update, because the next step has its gates even if this one is left out.
        new_state = new_state.replace(params=gating(new_state.params, new_state.step))
        auxiliary_A = sum_over_devices(measured.auxiliary, axis_name)
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
            entropy_LH=mean_over_step(measured.entropy_LH, axis_name) if reports else None,
            logit_max_LH=logit_max_LH,
            grad_norm_L=grad_norm_by_layer(grads) if config.telemetry.gradient_norms else None,
        )

    return train_step


def _summed(
    gradients: Callable[[MicroBatch], tuple[Params, Measured]],
    micro_batches: MicroBatch,
    params: Params,
) -> tuple[Params, Measured]:
    """The gradients summed over the micro-batches, and the measurements of each, [A, ...]."""
    if len(micro_batches.weight) == 1:
        grads, measured = gradients(jax.tree.map(lambda x: x[0], micro_batches))
        return grads, jax.tree.map(lambda x: x[None], measured)

    def accumulate(grads: Params, micro_batch: MicroBatch) -> tuple[Params, Measured]:
        new, measured = gradients(micro_batch)
        return jax.tree.map(jnp.add, grads, new), measured

    zeros = jax.tree.map(jnp.zeros_like, params)
    grads, measured = jax.lax.scan(accumulate, zeros, micro_batches)
    return grads, measured
