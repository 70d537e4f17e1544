"""Losses beside cross-entropy, each a mean over the sequences of a step.

    objective = cross-entropy + sum over auxiliary losses of weight * mean over sequences of loss

A sum over sequences that is divided by those of the whole step does not depend on how the batch is
cut into micro-batches, devices and processes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from absl import logging

from nfllm.config import Config
from nfllm.model.frozen_norm import DEVIATION
from nfllm.model.intermediates import ENTROPY, LOSSES
from nfllm.model.layers import join_layers
from nfllm.model.parameters import Params, Variables
from nfllm.training.entropy_penalty import entropy_penalty, highest_threshold


class Auxiliary(NamedTuple):
    """A loss beside cross-entropy.

    Attributes:
      name: its field in a line of metrics.
      weight: factor of its mean over sequences.
      parameters: start values of parameters of its own, `params["objective"]`.
      loss: of each sequence, [B], from the parameters and from what the model put
        into the collection `LOSSES`.
    """

    name: str
    weight: float
    parameters: dict[str, jax.Array]
    loss: Callable[[Params, Variables], jax.Array]


def auxiliary_losses(config: Config) -> tuple[Auxiliary, ...]:
    """Those that a config asks for."""
    chosen = []
    if config.objective.entropy_weight:
        chosen.append(_entropy_regularizer(config))
    if config.removal.scale_weight:
        chosen.append(Auxiliary("scale_spread", config.removal.scale_weight, {}, _scale_spread))
    return tuple(chosen)


def _scale_spread(params: Params, collected: Variables) -> jax.Array:
    return scale_spread(collected["final_norm"][DEVIATION])


def scale_spread(deviation_BT: jax.Array) -> jax.Array:
    """Variance over positions of the deviation of the last stream, [B] (2507.02559).

    mean over positions of (sigma_t - mean sigma)². A final norm that is removed divides all
    positions by one number: they should be of one size. The mean has no gradient, and is that of
    the sequence, where the paper takes that of a micro-batch. The first position, whose stream is
    far larger, counts in neither.
    """
    rest_BT = deviation_BT[:, 1:]
    mean_B1 = jax.lax.stop_gradient(jnp.mean(rest_BT, axis=1, keepdims=True))
    return jnp.mean(jnp.square(rest_BT - mean_B1), axis=1)


def _entropy_regularizer(config: Config) -> Auxiliary:
    """See `entropy_penalty`. Thresholds are [L, H], or [1, H] where all layers use one row."""
    objective, model = config.objective, config.model
    highest = highest_threshold(objective.entropy_margin, model.context_length)
    if objective.entropy_threshold >= highest:
        logging.warning(
            "objective.entropy_threshold=%g with entropy_margin=%g never penalizes a uniform head: "
            "with %d causal queries that takes a threshold below %.4f",
            objective.entropy_threshold,
            objective.entropy_margin,
            model.context_length,
            highest,
        )
    whole = (model.num_layers, model.num_heads)
    rows = model.num_layers if objective.entropy_threshold_sharing == "layer" else 1
    start = jnp.full((rows, model.num_heads), objective.entropy_threshold, jnp.float32)
    trainable = objective.entropy_threshold_trainable

    def loss(params: Params, collected: Variables) -> jax.Array:
        threshold = params["objective"]["entropy_threshold"] if trainable else start
        return entropy_penalty(
            join_layers(collected)[ENTROPY],
            jnp.broadcast_to(threshold, whole),
            margin=objective.entropy_margin,
            reduction=objective.entropy_reduction,
        )

    parameters = {"entropy_threshold": start} if trainable else {}
    return Auxiliary("entropy_penalty", objective.entropy_weight, parameters, loss)


def sum_losses(
    auxiliaries: tuple[Auxiliary, ...], params: Params, collected: Variables
) -> tuple[dict[str, jax.Array], jax.Array]:
    """The sum of each over the sequences, by name, and their weighted sum."""
    sums = {a.name: jnp.sum(a.loss(params, collected[LOSSES])) for a in auxiliaries}
    weighted = jnp.stack([a.weight * sums[a.name] for a in auxiliaries])
    return sums, jnp.sum(weighted)
