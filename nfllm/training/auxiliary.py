"""Losses beside cross-entropy, each a mean over the sequences of a step.

    objective = cross-entropy + sum over auxiliary losses of weight * mean over sequences of loss

A sum over sequences, divided by the number of sequences of the whole step, does not depend on how
the batch is split into micro-batches, devices and processes.
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
      parameters: start values of its own parameters, which are kept in `params["objective"]`.
      loss: the loss of each sequence, [B], from the parameters and the model's collection `LOSSES`.
    """

    name: str
    weight: float
    parameters: dict[str, jax.Array]
    loss: Callable[[Params, Variables], jax.Array]


def auxiliary_losses(config: Config) -> tuple[Auxiliary, ...]:
    """The auxiliary losses that a config chooses."""
    chosen = []
    if config.objective.entropy_weight:
        chosen.append(_entropy_regularizer(config))
    if config.removal.scale_weight:
        chosen.append(Auxiliary("scale_spread", config.removal.scale_weight, {}, _scale_spread))
    return tuple(chosen)


def _scale_spread(params: Params, collected: Variables) -> jax.Array:
    return scale_spread(collected["final_norm"][DEVIATION])


def scale_spread(deviation_BT: jax.Array) -> jax.Array:
    """Variance over positions of the last stream's standard deviation, [B] (arXiv 2507.02559).

    mean over positions of (sigma_t - mean sigma)². A final norm that is removed divides all
    positions by one number, so their sigmas should be equal. No gradient flows through the mean,
    which is over the sequence (in the paper over a micro-batch). The first position, whose stream
    is far larger, is left out of both means.

    Args:
      deviation_BT: sigma, the standard deviation of the stream at each position.
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
            "objective.entropy_threshold=%g with entropy_margin=%g never penalizes a uniform head; "
            "with %d causal queries the threshold must be below %.4f for that",
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
    """The sum of each loss over the sequences, by name, and the weighted sum of all."""
    sums = {a.name: jnp.sum(a.loss(params, collected[LOSSES])) for a in auxiliaries}
    weighted = jnp.stack([a.weight * sums[a.name] for a in auxiliaries])
    return sums, jnp.sum(weighted)
