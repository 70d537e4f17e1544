"""The function that a training step differentiates: the weighted, scaled loss of a micro-batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nfllm.config import TrainingConfig
from nfllm.model.decoder import Decoder
from nfllm.model.intermediates import LOSSES
from nfllm.model.parameters import Params, Variables
from nfllm.training.auxiliary import Auxiliary, sum_losses
from nfllm.training.loss_tiles import next_token_loss_from_features


class MicroBatch(NamedTuple):
    """Sequences, and the facts about the whole step that their loss depends on.

    `rows_B` is the index of each sequence in the step's global batch, which determines its dropout;
    `weight` is the factor of the summed loss (`micro_batch_weights`), and `share` the factor of the
    summed auxiliary losses, one divided by the step's number of sequences.
    """

    tokens_BT: jax.Array
    labels_BT: jax.Array
    rows_B: jax.Array
    weight: jax.Array
    share: jax.Array


class Forward(NamedTuple):
    """Results of a forward pass: the summed loss in nats without weight and scale, and more.

    `features_BTD` is the input of the output head, `collected` has the requested collections, and
    `auxiliary` the sum of each auxiliary loss over sequences, by name.
    """

    loss: jax.Array
    features_BTD: jax.Array
    collected: Variables
    auxiliary: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Objective:
    """`(loss * weight + auxiliary * share) * scale`, the value that is differentiated.

    `auxiliary` is the weighted sum of the auxiliary losses.
    """

    model: Decoder
    training: TrainingConfig
    auxiliaries: tuple[Auxiliary, ...] = ()

    def __call__(
        self,
        params: Params,
        micro_batch: MicroBatch,
        step: jax.Array,
        scale: jax.Array,
        collect: Sequence[str] = (),
    ) -> tuple[jax.Array, Forward]:
        """The value, and how it came about; `step` chooses the dropout."""
        tokens_BT, labels_BT, rows_B, weight, share = micro_batch
        config = self.model.config
        options: dict[str, Any] = {}
        if config.embedding_dropout or config.attention_dropout or config.residual_dropout:
            key = jax.random.fold_in(jax.random.key(self.training.seed), step)
            options = {"rngs": {"dropout": key}, "dropout_rows_B": rows_B}
        tile_rows = self.training.loss_tile_rows
        collections = (*collect, LOSSES) if self.auxiliaries else collect
        # It matters only where gradients are rounded to float16; elsewhere 1 gives the same bits.
        gradient_scale = weight * scale if self.training.dtype == "float16" else 1.0
        forward = run_forward(
            self.model,
            params,
            tokens_BT,
            labels_BT,
            tile_rows,
            collections,
            gradient_scale,
            **options,
        )
        if not self.auxiliaries:
            return forward.loss * weight * scale, forward
        sums, weighted = sum_losses(self.auxiliaries, params, forward.collected)
        total = forward.loss * weight + weighted * share
        return total * scale, forward._replace(auxiliary=sums)


def run_forward(
    model: Decoder,
    params: Params,
    tokens_BT: jax.Array,
    labels_BT: jax.Array,
    tile_rows: int | None,
    collect: Sequence[str] = (),
    gradient_scale: jax.Array | float = 1.0,
    **options: Any,
) -> Forward:
    """The summed loss of some sequences.

    Args:
      model: the decoder.
      params: its parameters.
      tokens_BT: token ids.
      labels_BT: token ids, or `IGNORED_LABEL`.
      tile_rows: as in `next_token_loss_from_features`.
      collect: names of the collections to return.
      gradient_scale: as in `next_token_loss_from_features`.
      **options: further arguments of the model.
    """
    variables = {"params": params}
    found: Any = model.apply(
        variables, tokens_BT, method=model.features, mutable=list(collect) or False, **options
    )
    x_BTD, collected = found if collect else (found, {})

    def head(x_ND: jax.Array) -> Any:
        return model.apply(variables, x_ND, method=model.head)

    loss = next_token_loss_from_features(head, x_BTD, labels_BT, tile_rows, gradient_scale)
    return Forward(loss, x_BTD, collected, {})


def micro_batch_weights(targets_A: jax.Array, weighting: str) -> jax.Array:
    """Factors of the micro-batches' summed losses that turn their sum into a mean.

    `token`: 1 / (all targets of the step). `micro_batch`: 1 / (A * targets of that micro-batch).
    """
    if weighting == "token":
        return jnp.full(targets_A.shape, 1.0 / jnp.maximum(jnp.sum(targets_A), 1), jnp.float32)
    return 1.0 / (targets_A.shape[0] * jnp.maximum(targets_A, 1).astype(jnp.float32))
