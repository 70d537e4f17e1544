"""States of metrics, merged over batches and over processes."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from nfllm.analysis import to_host
from nfllm.config import IGNORED_LABEL
from nfllm.data.batches import Batch, as_batches, with_labels
from nfllm.measure.metrics import Metric
from nfllm.model.parameters import Params

State = Any
"""The state of a metric: an object with a method `merge`, or a dictionary of such objects."""


def stream(
    measure: Callable[[np.ndarray], dict[str, State]],
    batches: Iterable[np.ndarray | Batch],
    metrics: Mapping[str, Metric],
) -> dict[str, State] | None:
    """Merges the states that `measure` computes from token ids [B, T], by name of the metric."""
    merge_on_device: Callable[[State, State], State] = jax.jit(merge_states, donate_argnums=0)
    total: dict[str, State] = {}
    lengths: set[int] = set()

    def add(states: dict[str, State]) -> None:
        for name, state in states.items():
            on_device = metrics[name].stays_on_device
            state = state if on_device else to_host(state)
            merge = merge_on_device if on_device else merge_states
            try:
                total[name] = merge(total[name], state) if name in total else state
            except (TypeError, ValueError) as error:
                if len(lengths) == 1:
                    raise
                raise ValueError(
                    f"the metric {name!r} cannot merge sequences of different lengths, here "
                    f"{', '.join(map(str, sorted(lengths)))} tokens; give batches of one length"
                ) from error

    pending: dict[str, State] = {}
    for batch in as_batches(batches):
        tokens = _real_rows(batch)
        lengths.add(tokens.shape[-1])
        if len(tokens):
            # The device computes this batch while the host merges the previous one.
            measured = measure(tokens)
            add(pending)
            pending = measured
    add(pending)
    return jax.tree.map(np.asarray, total) if total else None


def merge_states(a: State, b: State) -> State:
    """Merges two states of a metric: mergeable states, or a dict of them."""
    if isinstance(a, dict):
        return {name: merge_states(value, b[name]) for name, value in a.items()}
    # The Inf and NaN of a diverged model are results, not errors.
    with np.errstate(invalid="ignore", over="ignore"):
        return a.merge(b)


def merge_across_processes(states: dict[str, State] | None) -> dict[str, State]:
    """The states of all processes, merged in the order of processes, on every process.

    Raises:
      ValueError: a process has no state.
    """
    payload = b""
    if states is not None:
        leaves, structure = jax.tree.flatten(states)
        file = io.BytesIO()
        np.savez(file, *leaves)
        payload = file.getvalue()
    sizes = np.atleast_1d(multihost_utils.process_allgather(np.int32(len(payload))))
    if states is None or not sizes.all():
        idle = np.flatnonzero(sizes == 0).tolist()
        where = f" on process {', '.join(map(str, idle))}" if len(sizes) > 1 else ""
        raise ValueError(f"there is no sequence to analyze{where}: batches is empty")
    if len(sizes) == 1:
        return states
    # They are sent as bytes, since JAX would send double precision as single.
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: len(payload)] = np.frombuffer(payload, np.uint8)
    merged: dict[str, State] = {}
    for size, data in zip(sizes, multihost_utils.process_allgather(padded), strict=True):
        with np.load(io.BytesIO(data[:size].tobytes())) as file:
            other = jax.tree.unflatten(structure, [file[f"arr_{i}"] for i in range(len(leaves))])
        merged = merge_states(merged, other) if merged else other
    return merged


def of_this_process(params: Params) -> Params:
    """Parameters that every process holds, as arrays of this process only.

    Raises:
      ValueError: they are sharded over processes.
    """

    def local(x: jax.Array) -> jax.Array:
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return x
        if not x.is_fully_replicated:
            raise ValueError(
                "params are sharded over several processes; gather them first, for example by "
                "restoring the checkpoint on each process"
            )
        return x.addressable_data(0)

    return jax.tree.map(local, params)


def _real_rows(batch: np.ndarray | Batch) -> np.ndarray:
    tokens, labels = map(np.asarray, with_labels(batch))
    return tokens[(labels != IGNORED_LABEL).any(axis=-1)] if isinstance(batch, Batch) else tokens
