"""A batch as it is diagnosed: in parts that leave room for what the diagnosis keeps."""

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

    Every process holds all of it. P is a multiple of the micro-batches: the program keeps more
    than a training step does, so a device takes at most `_PART_TOKENS` at a time, or one
    sequence. With `pmap` a process works on its own devices alone.
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
