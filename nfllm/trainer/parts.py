"""Splits a batch into parts for the diagnosis of a step, which needs more memory than training."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from nfllm.data.batches import Batch
from nfllm.trainer.fsdp import AXIS
from nfllm.trainer.placement import Placement

_PART_TOKENS = 4096


def put_parts(placement: Placement, batch: Batch) -> Batch:
    """Places a global batch [B, T] as [P, B / P, T] for a program that `jit` partitions.

    Every process must pass the whole batch. P is a multiple of the number of micro-batches: the
    program needs more memory than a training step, so a device computes at most `_PART_TOKENS`
    tokens, or one sequence, at a time. With `pmap` a process uses only its own devices.
    """
    parts = placement.micro_batches * (placement.num_devices // placement.own_mesh.size)
    sequences, length = batch.tokens.shape
    rows = sequences // (parts * placement.own_mesh.size)
    fitting = max(1, _PART_TOKENS // length)
    parts *= next(n for n in range(1, rows + 1) if rows % n == 0 and rows // n <= fitting)
    sharding = NamedSharding(placement.own_mesh, PartitionSpec(None, AXIS))

    def place(x_BT: np.ndarray | jax.Array) -> jax.Array:
        x_PBT = np.asarray(x_BT).reshape(parts, -1, x_BT.shape[-1])
        return jax.make_array_from_callback(x_PBT.shape, sharding, lambda index: x_PBT[index])

    return Batch(place(batch.tokens), place(batch.labels))
