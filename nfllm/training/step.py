"""The training and the evaluation step: pure functions of (state, batch).

Neither knows how many devices there are. A step that runs on a slice of the batch gets the name of
the axis over which `parallel.py` mapped it, and sums over that axis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nfllm.config import OptimizerConfig, TrainingConfig
from nfllm.model.decoder import Decoder
from nfllm.model.intermediates import BY_PRODUCTS, ENTROPY
from nfllm.training.loss import count_targets, next_token_loss_from_features
from nfllm.training.schedules import Schedule
from nfllm.training.state import LossScale, TrainState

# As torch.cuda.amp.GradScaler: halve on overflow, double after 2000 finite steps.
_LOSS_SCALE_GROWTH_STEPS = 2000


class StepMetrics(NamedTuple):
    """What one training step tells.

    `grad_norm` is the L2 norm before clipping; `finite` is whether loss and gradients all were;
    `micro_losses` are the mean losses of the micro-batches, in nats per target; `entropy_LH` is the
    attention entropy in nats, a mean over sequences and queries, where the step was made with it.
    """

    loss_nats: jax.Array
    grad_norm: jax.Array
    learning_rate: jax.Array
    num_targets: jax.Array
    finite: jax.Array
    micro_losses: jax.Array  # [A]
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
    """Returns `train_step(state, tokens_ABT, labels_ABT, *, axis_name=None)`.

    A counts micro-batches; their gradients are summed inside the step, each loss times its weight:
    1 / (all targets of the step) by token, or 1 / (A * targets of that micro-batch). With
    `axis_name`, B is this device's share, and sums run over all devices.
    """
    uses_dropout = any(
        rate > 0
        for rate in (
            model.config.embedding_dropout,
            model.config.attention_dropout,
            model.config.residual_dropout,
        )
    )

    def train_step(
        state: TrainState,
        tokens_ABT: jax.Array,
        labels_ABT: jax.Array,
        *,
        axis_name: str | None = None,
    ) -> tuple[TrainState, StepMetrics]:
        targets_A = _sum_over_devices(jax.vmap(count_targets)(labels_ABT), axis_name)
        weights_A = _micro_batch_weights(targets_A, optimizer_config.accumulation_weighting)
        scale = jnp.float32(1.0) if state.loss_scale is None else state.loss_scale.factor
        dropout_key = jax.random.fold_in(jax.random.key(training_config.seed), state.step)

        def loss_of(
            params: Any,
            tokens_BT: jax.Array,
            labels_BT: jax.Array,
            index: jax.Array,
            weight: jax.Array,
        ) -> tuple[jax.Array, tuple[jax.Array, jax.Array | None]]:
            options: dict[str, Any] = {"mutable": [BY_PRODUCTS] if with_entropy else []}
            if uses_dropout:
                options["rngs"] = {"dropout": dropout_key}
                options["dropout_rows_B"] = _global_rows(index, tokens_BT.shape[0], axis_name)
            tile_rows = training_config.loss_tile_rows
            loss, recorded = _summed_loss(model, params, tokens_BT, labels_BT, tile_rows, **options)
            attention = recorded[BY_PRODUCTS]["blocks"]["attention"] if with_entropy else {}
            return loss * weight * scale, (loss, attention.get(ENTROPY))

        grad_of = jax.value_and_grad(loss_of, has_aux=True)

        def accumulate(grads: Any, micro_batch: Any) -> tuple[Any, Any]:
            (_, told), new = grad_of(state.params, *micro_batch)
            return jax.tree.map(jnp.add, grads, new), told

        num_micro_batches = tokens_ABT.shape[0]
        micro_batches = (tokens_ABT, labels_ABT, jnp.arange(num_micro_batches), weights_A)
        if num_micro_batches == 1:
            first = jax.tree.map(lambda x: x[0], micro_batches)
            (_, told), grads = grad_of(state.params, *first)
            losses_A, entropy_ALH = jax.tree.map(lambda x: x[None], told)
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
            entropy_LH=_mean_over_devices(entropy_ALH, axis_name),
        )

        def apply(state: TrainState) -> TrainState:
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            return state.replace(
                params=optax.apply_updates(state.params, updates), opt_state=opt_state
            )

        def skip(state: TrainState) -> TrainState:
            return state.replace(skipped=state.skipped + 1)

        # One non-finite gradient would make every parameter NaN through the clipping factor. The
        # state stays good unless the user asked to go on; float16 always skips, since its scale
        # overflows by design.
        if training_config.non_finite == "continue" and state.loss_scale is None:
            state = apply(state)
        else:
            state = jax.lax.cond(updates_finite, apply, skip, state)
        return state.replace(
            step=state.step + 1, loss_scale=_next_loss_scale(state.loss_scale, updates_finite)
        ), metrics

    return train_step


def make_eval_step(model: Decoder, loss_tile_rows: int | None = None) -> Callable[..., EvalSums]:
    """Returns `eval_step(params, tokens_BT, labels_BT, *, axis_name=None)`, without dropout."""

    def eval_step(
        params: Any, tokens_BT: jax.Array, labels_BT: jax.Array, *, axis_name: str | None = None
    ) -> EvalSums:
        sums = EvalSums(
            _summed_loss(model, params, tokens_BT, labels_BT, loss_tile_rows, mutable=[])[0],
            count_targets(labels_BT),
        )
        return _sum_over_devices(sums, axis_name)

    return eval_step


def _summed_loss(
    model: Decoder,
    params: Any,
    tokens_BT: jax.Array,
    labels_BT: jax.Array,
    tile_rows: int | None,
    **options: Any,
) -> tuple[jax.Array, Any]:
    """Summed loss in nats, and the recorded collections; `options` go to the model."""
    variables = {"params": params}
    x_BTD, recorded = model.apply(variables, tokens_BT, method=model.features, **options)

    def head(x_ND: jax.Array) -> Any:
        return model.apply(variables, x_ND, method=model.head)

    return next_token_loss_from_features(head, x_BTD, labels_BT, tile_rows), recorded


def _sum_over_devices(tree: Any, axis_name: str | None) -> Any:
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def _mean_over_devices(x_ALH: jax.Array | None, axis_name: str | None) -> jax.Array | None:
    """Mean over micro-batches and devices, all of which hold equally many sequences."""
    if x_ALH is None:
        return None
    x_LH = jnp.mean(x_ALH, axis=0)
    return x_LH if axis_name is None else jax.lax.pmean(x_LH, axis_name)


def _micro_batch_weights(targets_A: jax.Array, weighting: str) -> jax.Array:
    """Factor of each micro-batch's summed loss, so that the factors make a mean."""
    if weighting == "token":
        return jnp.full(targets_A.shape, 1.0 / jnp.maximum(jnp.sum(targets_A), 1), jnp.float32)
    return 1.0 / (targets_A.shape[0] * jnp.maximum(targets_A, 1).astype(jnp.float32))


def _global_rows(micro_batch: jax.Array, rows: int, axis_name: str | None) -> jax.Array:
    """Place of each local sequence in the step's global batch, [A, devices, B] flattened."""
    if axis_name is None:
        return micro_batch * rows + jnp.arange(rows)
    devices, device = jax.lax.axis_size(axis_name), jax.lax.axis_index(axis_name)
    return (micro_batch * devices + device) * rows + jnp.arange(rows)


def _is_healthy(loss: jax.Array, updates_finite: jax.Array, scale: LossScale | None) -> jax.Array:
    """Whether the step is sound; a scaled gradient that overflows only had too big a scale."""
    if scale is None:
        return updates_finite
    return jnp.isfinite(loss) & (updates_finite | (scale.factor > 1.0))


def _next_loss_scale(scale: LossScale | None, finite: jax.Array) -> LossScale | None:
    if scale is None:
        return None
    finite_steps = jnp.where(finite, scale.finite_steps + 1, 0)
    grows = finite_steps >= _LOSS_SCALE_GROWTH_STEPS
    factor = jnp.where(finite, jnp.where(grows, 2 * scale.factor, scale.factor), scale.factor / 2)
    return LossScale(factor, jnp.where(grows, 0, finite_steps))
