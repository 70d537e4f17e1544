"""The sharding of parameters, optimizer state and activations by `parallel.strategy="fsdp"`."""

from __future__ import annotations

import contextlib
from typing import Any, TypeVar

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nfllm.training.state import TrainState

T = TypeVar("T")

AXIS = "data"
"""The only device axis: data is sharded over it, and with `fsdp` the state as well."""


def shardings(state: TrainState, mesh: Mesh) -> TrainState:
    """A sharding for each leaf, which splits its largest dimension that the devices divide."""

    def sharding(leaf: jax.ShapeDtypeStruct | jax.Array) -> NamedSharding:
        divisible = [size if size % mesh.size == 0 else 0 for size in leaf.shape]
        if not any(divisible):
            return NamedSharding(mesh, PartitionSpec())
        before = (None,) * int(np.argmax(divisible))
        after = (None,) * (len(divisible) - len(before) - 1)
        return NamedSharding(mesh, PartitionSpec(*before, AXIS, *after))

    return jax.tree.map(sharding, state)


def split_by_sequence(
    sharding: NamedSharding, rows: int
) -> contextlib.AbstractContextManager[None]:
    """Within the block, inputs and outputs of every module are sharded by sequence.

    Otherwise the compiler would follow the sharding of the parameters: it would split the residual
    stream along D, as the embeddings, compute attention of all `rows` sequences on every device,
    and communicate activations instead of parameters.
    """

    def keep(x: T) -> T:
        splits = isinstance(x, jax.Array) and x.ndim > 1 and x.shape[0] % rows == 0
        return jax.lax.with_sharding_constraint(x, sharding) if splits else x

    def interceptor(function: Any, arguments: Any, options: Any, context: Any) -> Any:
        del context
        arguments, options = jax.tree.map(keep, (arguments, options))
        return jax.tree.map(keep, function(*arguments, **options))

    return nn.intercept_methods(interceptor)
