"""Runs the pure steps on devices: the only file that depends on their number.

`pmap` (data parallel) keeps a copy of the state on each device; `fsdp` shards parameters, gradients
and optimizer state over the devices. Both run the same `train_step`. The state never has a device
axis: a checkpoint does not depend on the strategy or on the number of devices.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.experimental.multihost_utils import (
    global_array_to_host_local_array,
    host_local_array_to_global_array,
)
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nfllm.config import Config
from nfllm.data.batches import Batch
from nfllm.model.parameters import Params
from nfllm.trainer import fsdp
from nfllm.trainer.batch_division import check_batch_size, micro_batches
from nfllm.trainer.fsdp import AXIS
from nfllm.training.eval_step import EvalStep, EvalSums
from nfllm.training.guard import Guard
from nfllm.training.state import SavedState, TrainState
from nfllm.training.step import StepMetrics, TrainStep


class Placement:
    """Compiles steps for all devices, and places states and batches on them.

    Attributes:
      num_devices: number of devices of all processes.
      micro_batches: number of micro-batches of a step.
      replicated: the sharding that puts a copy on every device.
      own_mesh: the devices of a program: with `pmap` those of this process, otherwise all.

    Example:
      >>> import nfllm
      >>> from nfllm.training.build import build
      >>> config = nfllm.load_run("runs/default").config
      >>> placement, built = Placement(config), build(config, vocab_size=256)
      >>> state = placement.init(built.init, jax.random.key(0))  # on all devices
      >>> step = placement.train_step(built.train_step)  # of a state and `put_train(batch)`
    """

    def __init__(self, config: Config, devices: Sequence[jax.Device] | None = None) -> None:
        """Uses `devices`, by default all devices.

        Raises:
          ConfigError: a batch does not divide over them.
        """
        self._strategy = config.parallel.strategy
        self._devices = list(jax.devices() if devices is None else devices)
        self._mesh = Mesh(np.asarray(self._devices), (AXIS,))
        # pmap works on arrays of this process, jit on global arrays.
        own = [device for device in self._devices if device.process_index == jax.process_index()]
        self.own_mesh = (
            Mesh(np.asarray(own), (AXIS,)) if config.parallel.strategy == "pmap" else self._mesh
        )
        self.num_devices = len(self._devices)
        self.replicated = NamedSharding(self.own_mesh, PartitionSpec())
        self.micro_batches = micro_batches(config, self.num_devices)
        check_batch_size(
            "training.batch_size", config.training.batch_size, self.num_devices, self.micro_batches
        )
        check_batch_size("evaluation.batch_size", config.evaluation.batch_size, self.num_devices)

    def init(self, init_fn: Callable[[jax.Array], TrainState], key: jax.Array) -> TrainState:
        """The state that `init_fn(key)` computes, created on the devices that will hold it."""
        shardings = self._shardings(jax.eval_shape(init_fn, key), self.own_mesh)
        return jax.jit(init_fn, out_shardings=shardings)(key)

    def abstract(self, init_fn: Callable[[jax.Array], TrainState]) -> SavedState:
        """Shapes, types and shardings of a saved `init_fn(key)`, which is not run."""
        shapes = jax.eval_shape(init_fn, jax.random.key(0)).without_guard()
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            self._shardings(shapes, self._mesh),
        )

    def to_checkpoint(self, state: TrainState) -> SavedState:
        """The part of the state to save, as global arrays that all processes write together."""
        saved = state.without_guard()
        if self._mesh is self.own_mesh or jax.process_count() == 1:
            return saved
        return host_local_array_to_global_array(saved, self._mesh, PartitionSpec())

    def from_checkpoint(self, state: SavedState) -> TrainState:
        """The restored state, placed as the train step needs it."""
        if self._mesh is not self.own_mesh and jax.process_count() > 1:
            state = global_array_to_host_local_array(state, self._mesh, PartitionSpec())
        guard = np.int32(Guard.WATCHING)
        placed = jax.make_array_from_callback((), state.step.sharding, lambda _: guard)
        return state.with_guard(placed)

    def _shardings(self, state: TrainState, mesh: Mesh) -> TrainState:
        """A sharding for each leaf: a copy on every device, or what `fsdp` splits."""
        if self._strategy == "pmap":
            return jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), state)
        return fsdp.shardings(state, mesh)

    def train_step(self, step: TrainStep) -> jax.stages.Wrapped:
        """Compiles `step`; the old state's memory is reused."""
        if self._strategy == "pmap":
            return jax.pmap(
                functools.partial(step, axis_name=AXIS),
                axis_name=AXIS,
                devices=self._devices,
                in_axes=(None, 1),
                out_axes=None,
                donate_argnums=0,
            )
        batch_sharding = NamedSharding(self._mesh, PartitionSpec(None, AXIS))
        replicated = NamedSharding(self._mesh, PartitionSpec())

        @functools.partial(jax.jit, donate_argnums=0)
        def sharded(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
            shardings = self._shardings(state, self._mesh)
            state = jax.lax.with_sharding_constraint(state, shardings)
            batch = jax.lax.with_sharding_constraint(batch, batch_sharding)
            with self.split_by_sequence(batch.tokens.shape[1]):
                state, metrics = step(state, batch)
            return jax.lax.with_sharding_constraint((state, metrics), (shardings, replicated))

        return sharded

    def eval_step(self, step: EvalStep) -> jax.stages.Wrapped:
        """Compiles `step`."""
        if self._strategy == "pmap":
            return jax.pmap(
                functools.partial(step, axis_name=AXIS),
                axis_name=AXIS,
                devices=self._devices,
                in_axes=(None, 0),
                out_axes=None,
            )

        @jax.jit
        def sharded(params: Params, batch: Batch) -> EvalSums:
            with self.split_by_sequence(batch.tokens.shape[0]):
                return step(params, batch)

        return sharded

    def replace(self, state: TrainState, change: Callable[[TrainState], TrainState]) -> TrainState:
        """`change(state)`, placed as the train step needs it."""
        return jax.jit(change, out_shardings=jax.tree.map(lambda x: x.sharding, state))(state)

    def split_by_sequence(self, rows: int) -> contextlib.AbstractContextManager[None]:
        """Within the block, modules work on whole sequences; with `pmap` they do so anyway."""
        if self._strategy == "pmap":
            return contextlib.nullcontext()
        return fsdp.split_by_sequence(NamedSharding(self._mesh, PartitionSpec(AXIS)), rows)

    def put_train(self, batch: Batch) -> Batch:
        """Splits this process's rows [B, T] into micro-batches and places them on its devices."""
        return self._put(batch, (self.micro_batches,))

    def put_eval(self, batch: Batch) -> Batch:
        """Places this process's rows [B, T] on its devices."""
        return self._put(batch, ())

    def put_probe(self, tokens_BT: np.ndarray) -> jax.Array:
        """Places sequences [B, T], held by every process, for a program that `jit` partitions."""
        splits = len(tokens_BT) % self.own_mesh.size == 0
        sharding = NamedSharding(self.own_mesh, PartitionSpec(AXIS) if splits else PartitionSpec())
        return jax.make_array_from_callback(
            tokens_BT.shape, sharding, lambda index: tokens_BT[index]
        )

    def _put(self, batch: Batch, leading: tuple[int, ...]) -> Batch:
        axes = (None,) * len(leading) + (AXIS,)
        sharding = NamedSharding(self.own_mesh, PartitionSpec(*axes))
        # pmap maps an explicit device axis; jit shards the batch axis itself.
        by_device = (self.own_mesh.size,) if self._strategy == "pmap" else ()

        def place(x_BT: np.ndarray | jax.Array) -> jax.Array:
            local = np.asarray(x_BT).reshape(*leading, *by_device, -1, x_BT.shape[-1])
            return jax.make_array_from_process_local_data(sharding, local)

        return Batch(place(batch.tokens), place(batch.labels))
