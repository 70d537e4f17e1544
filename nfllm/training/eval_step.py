"""The evaluation step: a pure function of (params, batch)."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from nfllm.data.batches import Batch
from nfllm.model.decoder import Decoder
from nfllm.model.parameters import Params
from nfllm.training.devices import sum_over_devices
from nfllm.training.loss import count_targets
from nfllm.training.objective import run_forward


class EvalSums(NamedTuple):
    """Summed loss in nats and number of targets of one evaluation batch."""

    loss_nats: jax.Array
    num_targets: jax.Array


class EvalStep(Protocol):
    """A pure evaluation step; `axis_name` as for `TrainStep`."""

    def __call__(self, params: Params, batch: Batch, *, axis_name: str | None = None) -> EvalSums:
        """Sums the loss of `batch`, tokens and labels [B, T], without dropout."""


def make_eval_step(model: Decoder, loss_tile_rows: int | None = None) -> EvalStep:
    """The evaluation step of a model; logits are computed in tiles, as in training."""

    def eval_step(params: Params, batch: Batch, *, axis_name: str | None = None) -> EvalSums:
        tokens_BT, labels_BT = map(jnp.asarray, batch)
        loss = run_forward(model, params, tokens_BT, labels_BT, loss_tile_rows).loss
        return sum_over_devices(EvalSums(loss, count_targets(labels_BT)), axis_name)

    return eval_step
