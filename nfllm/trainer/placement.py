"""Runs the pure steps on devices: the only file that depends on their number.

`pmap` (data parallel) keeps a copy of the state on each device; `fsdp` shards parameters, gradients
and optimizer state over the devices. Both run the same `train_step`. The state never has a device
axis: a checkpoint does not depend on the strategy or on the number of devices.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.experimental.multihost_utils import (
    global_array_to_host_local_array,
    host_local_array_to_global_array,
)
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nfllm.config import Config, ConfigError
from nfllm.data.batches import Batch
from nfllm.model.parameters import Params
from nfllm.model.tuning import tuning
from nfllm.training.state import Guard, SavedState, TrainState
from nfllm.training.step import EvalStep, EvalSums, StepMetrics, TrainStep

AXIS = "data"

_PART_TOKENS = 4096


def _micro_batches(config: Config, devices: int) -> int:
    """`training.gradient_accumulation`; by default the fastest number that gives the same mean."""
    training = config.training
    if training.gradient_accumulation is not None:
        return training.gradient_accumulation
    tokens = tuning().micro_batch_tokens
    if tokens is None or config.optimizer.accumulation_weighting != "token":
        return 1
    rows = max(1, tokens // config.model.context_length)
    per_device = max(1, training.batch_size // devices)
    return next(
        n for n in range(1, per_device + 1) if per_device % n == 0 and per_device // n <= rows
    )


def _check_batch_size(key: str, sequences: int, devices: int, micro_batches: int = 1) -> None:
    """Raises ConfigError unless `sequences` splits evenly into micro-batches over the devices."""
    if sequences % (devices * micro_batches):
        parts = f"{micro_batches} micro-batches on " if micro_batches > 1 else ""
        unit = devices * micro_batches
        nearest = max(unit, unit * round(sequences / unit))
        raise ConfigError(
            f"{key}={sequences} does not divide over {parts}{devices} devices; use a multiple of "
            f"{unit}, such as {nearest}"
        )


def configure_devices(config: Config) -> None:
    """Splits a CPU into `parallel.cpu_devices` devices; call it before the first array is made.

    The default is the largest number, at most one per core, over which the training and the
    evaluation batch divide; 1 if there are several processes; and unchanged if the process has
    already set the number or made devices.

    Raises:
      ConfigError: the process already has another number of devices.
    """
    wanted = config.parallel.cpu_devices
    if wanted is None and _cpu_devices_are_set():
        return
    sequences = math.gcd(
        config.training.batch_size // (config.training.gradient_accumulation or 1),
        config.evaluation.batch_size,
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    alone = not jax.distributed.is_initialized()
    most = cores or 1 if alone else 1
    fitting = max(n for n in range(1, most + 1) if sequences % n == 0)
    try:
        jax.config.update("jax_num_cpu_devices", wanted or fitting)
    except RuntimeError as error:
        found = jax.device_count("cpu")
        if wanted not in (None, found):
            raise ConfigError(
                f"parallel.cpu_devices={wanted}, but this process already has "
                f"{found}; set the key before anything runs on JAX, or leave it unset"
            ) from error


def _cpu_devices_are_set() -> bool:
    return (
        getattr(jax.config, "jax_num_cpu_devices") > 0  # noqa: B009 (mypy knows no config state)
        or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    )


class Placement:
    """Compiles steps for all devices, and places states and batches on them.

    Attributes:
      num_devices: number of devices of all processes.
      micro_batches: number of micro-batches of a step.
      replicated: the sharding that puts a copy on every device.

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
        self._own_mesh = (
            Mesh(np.asarray(own), (AXIS,)) if config.parallel.strategy == "pmap" else self._mesh
        )
        self.num_devices = len(self._devices)
        self.replicated = NamedSharding(self._own_mesh, PartitionSpec())
        self.micro_batches = _micro_batches(config, self.num_devices)
        _check_batch_size(
            "training.batch_size", config.training.batch_size, self.num_devices, self.micro_batches
        )
        _check_batch_size("evaluation.batch_size", config.evaluation.batch_size, self.num_devices)

    def init(self, init_fn: Callable[[jax.Array], TrainState], key: jax.Array) -> TrainState:
        """The state that `init_fn(key)` computes, created on the devices that will hold it."""
        shardings = self._shardings(jax.eval_shape(init_fn, key), self._own_mesh)
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
        if self._mesh is self._own_mesh or jax.process_count() == 1:
            return saved
        return host_local_array_to_global_array(saved, self._mesh, PartitionSpec())

    def from_checkpoint(self, state: SavedState) -> TrainState:
        """The restored state, placed as the train step needs it."""
        if self._mesh is not self._own_mesh and jax.process_count() > 1:
            state = global_array_to_host_local_array(state, self._mesh, PartitionSpec())
        guard = np.int32(Guard.WATCHING)
        placed = jax.make_array_from_callback((), state.step.sharding, lambda _: guard)
        return state.with_guard(placed)

    def _shardings(self, state: TrainState, mesh: Mesh) -> TrainState:
        """A sharding per leaf. fsdp splits the largest dimension that the devices divide."""
        return jax.tree.map(lambda leaf: NamedSharding(mesh, self._spec(leaf.shape)), state)

    def _spec(self, shape: tuple[int, ...]) -> PartitionSpec:
        divisible = [size if size % self.num_devices == 0 else 0 for size in shape]
        if self._strategy == "pmap" or not any(divisible):
            return PartitionSpec()
        axis = int(np.argmax(divisible))
        return PartitionSpec(*(AXIS if i == axis else None for i in range(len(shape))))

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

    def with_params(self, state: TrainState, values: Mapping[str, np.ndarray]) -> TrainState:
        """The state, with parameters replaced by `values` of the same names and placement.

        A name is the path in the tree, joined by dots. A value with fewer rows than the parameter
        replaces only its first rows.
        """

        def put(path: Any, old: jax.Array) -> jax.Array:
            name = ".".join(key.key for key in path)
            if name not in values:
                return old
            value = np.asarray(values[name], old.dtype)
            if value.shape == old.shape:
                return place(value, old.sharding)
            rows, whole = len(value), np.zeros(old.shape, old.dtype)
            whole[:rows] = value
            join = jax.jit(lambda x, old: x.at[rows:].set(old[rows:]), out_shardings=old.sharding)
            return join(place(whole, old.sharding), old)

        def place(value: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
            return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

        return state.replace(params=jax.tree_util.tree_map_with_path(put, state.params))

    def split_by_sequence(self, rows: int) -> contextlib.AbstractContextManager[None]:
        """Within the block, inputs and outputs of every module are sharded by sequence.

        Otherwise the compiler would follow the sharding of the parameters: it would split the
        residual stream along D, as the embeddings, compute attention of all `rows` sequences on
        every device, and communicate activations instead of parameters. With `pmap` this does
        nothing.
        """
        if self._strategy == "pmap":
            return contextlib.nullcontext()
        sharding = NamedSharding(self._mesh, PartitionSpec(AXIS))

        def keep(x: Any) -> Any:
            splits = isinstance(x, jax.Array) and x.ndim > 1 and x.shape[0] % rows == 0
            return jax.lax.with_sharding_constraint(x, sharding) if splits else x

        def interceptor(function: Any, arguments: Any, options: Any, context: Any) -> Any:
            del context
            arguments, options = jax.tree.map(keep, (arguments, options))
            return jax.tree.map(keep, function(*arguments, **options))

        return nn.intercept_methods(interceptor)

    def put_train(self, batch: Batch) -> Batch:
        """Splits this process's rows [B, T] into micro-batches and places them on its devices."""
        return self._put(batch, (self.micro_batches,))

    def put_eval(self, batch: Batch) -> Batch:
        """Places this process's rows [B, T] on its devices."""
        return self._put(batch, ())

    def put_probe(self, tokens_BT: np.ndarray) -> jax.Array:
        """Places sequences [B, T], held by every process, for a program that `jit` partitions."""
        splits = len(tokens_BT) % self._own_mesh.size == 0
        sharding = NamedSharding(self._own_mesh, PartitionSpec(AXIS) if splits else PartitionSpec())
        return jax.make_array_from_callback(
            tokens_BT.shape, sharding, lambda index: tokens_BT[index]
        )

    def put_parts(self, batch: Batch) -> Batch:
        """Places a global batch [B, T] as [P, B / P, T] for a program that `jit` partitions.

        Every process must pass the whole batch. P is a multiple of the number of micro-batches: the
        program needs more memory than a training step, so a device computes at most `_PART_TOKENS`
        tokens, or one sequence, at a time. With `pmap` a process uses only its own devices.
        """
        parts = self.micro_batches * (self.num_devices // self._own_mesh.size)
        sequences, length = batch.tokens.shape
        rows = sequences // (parts * self._own_mesh.size)
        fitting = max(1, _PART_TOKENS // length)
        parts *= next(n for n in range(1, rows + 1) if rows % n == 0 and rows // n <= fitting)
        sharding = NamedSharding(self._own_mesh, PartitionSpec(None, AXIS))

        def place(x_BT: np.ndarray | jax.Array) -> jax.Array:
            x_PBT = np.asarray(x_BT).reshape(parts, -1, x_BT.shape[-1])
            return jax.make_array_from_callback(x_PBT.shape, sharding, lambda index: x_PBT[index])

        return Batch(place(batch.tokens), place(batch.labels))

    def _put(self, batch: Batch, leading: tuple[int, ...]) -> Batch:
        axes = (None,) * len(leading) + (AXIS,)
        sharding = NamedSharding(self._own_mesh, PartitionSpec(*axes))
        # pmap maps an explicit device axis; jit shards the batch axis itself.
        by_device = (self._own_mesh.size,) if self._strategy == "pmap" else ()

        def place(x_BT: np.ndarray | jax.Array) -> jax.Array:
            local = np.asarray(x_BT).reshape(*leading, *by_device, -1, x_BT.shape[-1])
            return jax.make_array_from_process_local_data(sharding, local)

        return Batch(place(batch.tokens), place(batch.labels))
