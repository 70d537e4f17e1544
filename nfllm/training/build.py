"""The one place where a config becomes model, optimizer and steps."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nfllm.config import Config
from nfllm.model.decoder import Decoder
from nfllm.training.optimizer import make_optimizer
from nfllm.training.schedules import make_schedule
from nfllm.training.state import TrainState, init_state
from nfllm.training.step import EvalStep, TrainStep, make_eval_step, make_train_step


class Built(NamedTuple):
    """Pure functions; where they run is the caller's choice.

    `init(key)` makes the state before the first step.
    """

    model: Decoder
    init: Callable[[jax.Array], TrainState]
    train_step: TrainStep
    eval_step: EvalStep


def build(config: Config, vocab_size: int) -> Built:
    """The model of a config, its first state, its training and its evaluation step.

    Example:
      built = build(config, vocab_size=4096)
      state = jax.jit(built.init)(jax.random.key(0))
      state, metrics = jax.jit(built.train_step)(state, Batch(tokens_ABT, tokens_ABT))

    Raises:
      ConfigError: the schedule of the learning rate leaves no step to decay in.
    """
    model = Decoder(config.model, vocab_size, dtype_of(config.training.dtype))
    schedule = make_schedule(config.optimizer, config.training.steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    return Built(
        model,
        functools.partial(init_state, model=model, optimizer=optimizer),
        make_train_step(config, model, optimizer, schedule),
        make_eval_step(model, config.training.loss_tile_rows),
    )


def dtype_of(name: str) -> jnp.dtype:
    """The type of matrix products; `auto` is float32 on a CPU and bfloat16 elsewhere."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)
