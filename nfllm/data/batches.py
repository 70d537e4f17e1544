"""Batches as pure functions of (seed, step, batch size), and a thread that prefetches them.

Nothing here has state that would belong in a checkpoint: the batch of any step can be computed
directly, on any number of hosts.
"""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np

from nfllm.config import IGNORED_LABEL
from nfllm.data.permutation import permute
from nfllm.data.windows import Windows

if TYPE_CHECKING:
    import jax

STALL_SECONDS = 60.0

T = TypeVar("T")
U = TypeVar("U")


class Batch(NamedTuple):
    """Token ids `[B, T]` int32, and the same ids with `IGNORED_LABEL` where there is no target.

    Labels are not shifted: position t of the logits is compared with label t + 1.
    """

    tokens: np.ndarray | jax.Array
    labels: np.ndarray | jax.Array


def as_batches(batches: Any) -> Iterable[Any]:
    """Batches as they are; of a single batch, or of one array [B, T] of token ids, a list of it.

    Raises:
      ValueError: token ids without the axis of sequences.
    """
    if isinstance(batches, Batch):
        return [batches]
    rank = getattr(batches, "ndim", None)
    if rank == 1:
        _check_rows(batches)
    return [batches] if rank == 2 else batches


def with_labels(batch: Any) -> Batch:
    """A batch on the host; an array of token ids counts as its own labels.

    Raises:
      ValueError: token ids or labels are not [B, T], or their shapes differ.
    """
    parts = batch if isinstance(batch, Batch) else (batch, batch)
    tokens, labels = (np.asarray(part) for part in parts)
    _check_rows(tokens)
    if labels.shape != tokens.shape:
        raise ValueError(
            f"labels have shape {list(labels.shape)}, but token ids {list(tokens.shape)}; a label "
            "is the id at its own position, or -100"
        )
    return Batch(tokens, labels)


def _check_rows(tokens: np.ndarray) -> None:
    if tokens.ndim != 2:
        hint = "give tokens[None]" if tokens.ndim == 1 else "give an array with a row a sequence"
        raise ValueError(f"token ids are [B, T], not {list(tokens.shape)}; {hint}")


def train_indices(num_windows: int, seed: int, step: int, batch_size: int) -> np.ndarray:
    """Indices of the windows in global batch number `step`, shape [batch_size].

    Epochs follow each other without a gap: position `step * batch_size + i` of the stream is entry
    `position % num_windows` of the permutation of epoch `position // num_windows`. So every window
    occurs exactly once in an epoch, even if a batch crosses into the next epoch.

    Raises:
      ValueError: there are fewer windows than a batch has rows.
    """
    if num_windows < batch_size:
        raise ValueError(
            f"the training split has {num_windows} windows, fewer than training.batch_size="
            f"{batch_size}; add documents, or lower training.batch_size or model.context_length"
        )
    positions = step * batch_size + np.arange(batch_size, dtype=np.int64)
    epochs, entries = np.divmod(positions, num_windows)
    indices = np.empty(batch_size, np.int64)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        here = epochs == epoch
        indices[here] = permute(entries[here], num_windows, seed, epoch)
    return indices


def train_batch(
    windows: Windows,
    seed: int,
    step: int,
    batch_size: int,
    *,
    ignored_id: int | None = None,
    micro_batches: int = 1,
    shard: int = 0,
    num_shards: int = 1,
) -> Batch:
    """The rows of global batch number `step` that belong to `shard`.

    Args:
      windows: the training windows.
      seed: random seed of the order.
      step: number of the batch, from 0.
      batch_size: rows of the global batch, over all shards.
      ignored_id: token id that is never a target; None: any id may be a target.
      micro_batches: number of equal, contiguous parts of the global batch, each divided among all
        hosts, so that a micro-batch has the same rows for any number of hosts.
      shard: number of this host.
      num_shards: number of hosts; a shard is a contiguous slice of each micro-batch.

    Returns:
      Batch of shape [batch_size // num_shards, T].

    Raises:
      ValueError: `num_shards` does not divide the micro-batches, or there are too few windows.
    """
    part = _shard_rows(batch_size // micro_batches, shard, num_shards)
    indices = train_indices(len(windows), seed, step, batch_size)
    mine = indices.reshape(micro_batches, -1)[:, part].reshape(-1)
    return _labelled(windows.gather(mine), ignored_id)


def evaluation_batches(
    windows: Windows,
    batch_size: int,
    *,
    ignored_id: int | None = None,
    max_windows: int | None = None,
    shard: int = 0,
    num_shards: int = 1,
) -> Iterator[Batch]:
    """All windows in order; the last batch is padded with rows without labels.

    With `max_windows`, at most that many windows, evenly spread over the split. Every shard gets
    the same number of batches, each of shape [batch_size // num_shards, T].

    Raises:
      ValueError: `num_shards` does not divide `batch_size`.
    """
    rows = _shard_rows(batch_size, shard, num_shards)
    count = len(windows) if max_windows is None else min(max_windows, len(windows))
    chosen = np.arange(count, dtype=np.int64) * len(windows) // max(1, count)
    for start in range(0, count, batch_size):
        indices = chosen[start : start + batch_size][rows]
        real = _labelled(windows.gather(indices), ignored_id)
        missing = (rows.stop - rows.start - len(indices), windows.context_length)
        yield Batch(
            np.concatenate([real.tokens, np.zeros(missing, np.int32)]),
            np.concatenate([real.labels, np.full(missing, IGNORED_LABEL, np.int32)]),
        )


def _shard_rows(batch_size: int, shard: int, num_shards: int) -> slice:
    if batch_size % num_shards:
        raise ValueError(
            f"a batch of {batch_size} sequences does not divide over {num_shards} hosts; choose a "
            f"multiple of {num_shards}"
        )
    if not 0 <= shard < num_shards:
        raise ValueError(f"shard {shard} is not one of {num_shards} (0 to {num_shards - 1})")
    per_shard = batch_size // num_shards
    return slice(shard * per_shard, (shard + 1) * per_shard)


def _labelled(tokens: np.ndarray, ignored_id: int | None) -> Batch:
    if ignored_id is None:
        return Batch(tokens, tokens)
    return Batch(tokens, np.where(tokens == ignored_id, np.int32(IGNORED_LABEL), tokens))


class Prefetcher(Generic[U]):
    """Iterator over items that a thread makes ahead of their consumer.

    Attributes:
      waited_seconds: how long the consumer has waited for items so far.
      on_stall: called with the seconds that the consumer has waited for one item, when they reach
        `STALL_SECONDS`; the wait continues.
    """

    def __init__(
        self,
        make: Callable[[int], T],
        start: int,
        stop: int,
        put: Callable[[T], U],
        depth: int = 2,
    ) -> None:
        if depth < 1:
            raise ValueError(f"depth={depth} must be at least 1")
        self.waited_seconds = 0.0
        self.on_stall: Callable[[float], None] | None = None
        self._ready: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._slots = threading.Semaphore(depth)
        self._stopped = threading.Event()
        # The thread holds no reference to this object, so dropping the iterator ends the thread.
        self._thread = threading.Thread(
            target=_produce,
            args=(make, range(start, stop), put, self._ready, self._slots, self._stopped),
            name="nfllm-prefetch",
            daemon=True,
        )
        self.close = weakref.finalize(self, _end_thread, self._thread, self._slots, self._stopped)
        self._thread.start()

    def __iter__(self) -> Prefetcher[U]:
        return self

    def __next__(self) -> U:
        if not self.close.alive:
            raise StopIteration
        begin = time.perf_counter()
        try:
            kind, value = self._ready.get(timeout=STALL_SECONDS)
        except queue.Empty:
            if self.on_stall is not None:
                self.on_stall(time.perf_counter() - begin)
            kind, value = self._ready.get()
        self.waited_seconds += time.perf_counter() - begin
        self._slots.release()
        if kind == "item":
            return value
        self.close()
        raise StopIteration if kind == "end" else value

    def __enter__(self) -> Prefetcher[U]:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def prefetch(
    make: Callable[[int], T], start: int, stop: int, put: Callable[[T], U], depth: int = 2
) -> Prefetcher[U]:
    """Yields `put(make(step))` for step in range(start, stop), made `depth` ahead in a thread.

    An exception of `make` or `put` is raised in the consumer in place of that item. The thread ends
    when the iterator is exhausted, closed, left as a context manager, or garbage-collected:

        with prefetch(make, 0, 100, jax.device_put) as batches:
            for batch in batches:
                ...
        print(batches.waited_seconds)
    """
    return Prefetcher(make, start, stop, put, depth)


def _produce(
    make: Callable[[int], T],
    steps: range,
    put: Callable[[T], object],
    ready: queue.SimpleQueue[tuple[str, object]],
    slots: threading.Semaphore,
    stopped: threading.Event,
) -> None:
    try:
        for step in steps:
            slots.acquire()
            if stopped.is_set():
                return
            ready.put(("item", put(make(step))))
    except StopIteration as error:  # in the consumer it would look like the end, as in PEP 479
        stopped_early = RuntimeError("the function that makes items raised StopIteration")
        stopped_early.__cause__ = error
        ready.put(("error", stopped_early))
    except BaseException as error:
        ready.put(("error", error))
    else:
        ready.put(("end", None))


def _end_thread(
    thread: threading.Thread, slots: threading.Semaphore, stopped: threading.Event
) -> None:
    stopped.set()
    slots.release()
    if thread is not threading.current_thread():
        thread.join()
