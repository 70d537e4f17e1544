"""Builds model, optimizer and steps from a config."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nfllm.config import Config
from nfllm.model.decoder import Decoder
from nfllm.training.auxiliary import Auxiliary, auxiliary_losses
from nfllm.training.eval_step import EvalStep, make_eval_step
from nfllm.training.optimizer import make_optimizer
from nfllm.training.removal import make_gating
from nfllm.training.schedules import make_schedule
from nfllm.training.state import TrainState, init_state
from nfllm.training.step import TrainStep, make_train_step


class Built(NamedTuple):
    """The model and pure functions, which the caller places on devices.

    `init(key)` makes the state before the first step; `auxiliaries` are the losses that the
    objective has beside cross-entropy.
    """

    model: Decoder
    auxiliaries: tuple[Auxiliary, ...]
    init: Callable[[jax.Array], TrainState]
    train_step: TrainStep
    eval_step: EvalStep


def build(config: Config, vocab_size: int) -> Built:
    """The model of a config, its initial state, and its training and evaluation step.

    Raises:
      ConfigError: the warmup of the learning rate is as long as the run.

    Example:
      >>> import nfllm
      >>> from nfllm.data.batches import Batch
      >>> built = build(nfllm.load_run("runs/default").config, vocab_size=256)
      >>> state = jax.eval_shape(built.init, jax.random.key(0))
      >>> ids_ABT = jax.ShapeDtypeStruct((1, 8, 32), jnp.int32)
      >>> state, metrics = jax.eval_shape(built.train_step, state, Batch(ids_ABT, ids_ABT))
    """
    model = Decoder(config.model, vocab_size, dtype_of(config.training.dtype))
    schedule = make_schedule(config.optimizer, config.training.steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    auxiliaries = auxiliary_losses(config)
    own = {name: value for loss in auxiliaries for name, value in loss.parameters.items()}
    return Built(
        model,
        auxiliaries,
        functools.partial(
            init_state,
            model=model,
            optimizer=optimizer,
            objective_params=own,
            gating=make_gating(config),
        ),
        make_train_step(config, model, optimizer, schedule, auxiliaries),
        make_eval_step(model, config.training.loss_tile_rows),
    )


def dtype_of(name: str) -> jnp.dtype:
    """The dtype of matrix products; `auto` is float32 on a CPU and bfloat16 elsewhere."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)
