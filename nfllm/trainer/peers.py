"""Messages between the processes of a run, without their devices: answers, progress, failures.

A collective operation waits forever for a process that is busy, hangs or has failed. So processes
agree through JAX's key-value store, whose waits have a timeout. For all other waits, a thread in
each process watches the others: it ends its process soon after another has failed, or when no
process has made progress for half an hour.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
from absl import logging

from nfllm.rundir import RunError

_ANSWER_SECONDS = 1800.0
_PATIENCE_SECONDS = 60.0  # after waiting this long, a warning names the missing process
_POLL_SECONDS = 1.0
# Many errors, such as a wrong config, occur in every process: each gets time to print its own.
_GRACE_SECONDS = 5.0
_STALL_SECONDS = 1800.0

_FAILED = "nfllm/failed/"
_PROGRESS = "nfllm/progress/"


class _Own:
    """The number of exchanges of this process so far, and its progress (None: not watched)."""

    exchanges = itertools.count()
    progress: str | None = None


def exchange(what: str, own: Any, limit_seconds: float | None = None) -> list[Any]:
    """Gathers a value from every process, in the order of processes; [own] for a single process.

    All processes must make the same exchanges in the same order.

    Args:
      what: what the processes wait for, to complete messages: "process 0: to finish".
      own: the value of this process, which must be JSON-able.
      limit_seconds: how long to wait for the others; by default half an hour.

    Raises:
      RunError: a process, which the message names, has not answered in time.
    """
    distributed = _distributed()
    if distributed is None:
        return [own]
    client = distributed.client
    folder = f"nfllm/{next(_Own.exchanges)} {what}/"
    client.key_value_set(f"{folder}{distributed.process_id}", json.dumps(own))
    deadline = time.monotonic() + (limit_seconds or _ANSWER_SECONDS)
    answers = []
    for process in range(distributed.num_processes):
        text = _wait(client, f"{folder}{process}", deadline, f"process {process}: {what}")
        answers.append(json.loads(text))
    return answers


def progress(what: str | None) -> None:
    """Sets the progress of this process, such as "step 7"; None while it may take any time."""
    _Own.progress = what


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Ends all processes soon after one has failed in this block.

    Processes leave the block together: JAX would abort those that are still busy half a minute
    after the first has left. With a single process this does nothing.
    """
    distributed = _distributed()
    if distributed is None:
        yield
        return
    watch = _Watch(distributed)
    watch.start()
    try:
        yield
        progress(None)
        exchange("to finish", None)
    except BaseException as error:
        watch.write_failure(error)
        raise
    finally:
        progress(None)
        watch.stopped.set()
        if watch.ending:  # this thread's error only follows from the one that the watch reports
            watch.join()


class _Watch(threading.Thread):
    """A thread that reads the failures and progress of the other processes every second."""

    def __init__(self, distributed: Any) -> None:
        super().__init__(name="nfllm-watch", daemon=True)
        self.stopped = threading.Event()
        self.ending = False
        self._client = distributed.client
        self._own = str(distributed.process_id)
        self._written: str | None = None

    def write_failure(self, error: BaseException) -> None:
        """Tells the other processes why this one ends."""
        text = str(error) or type(error).__name__
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # the coordinator may be gone
            self._client.key_value_set(f"{_FAILED}{self._own}", text)

    def run(self) -> None:
        """Returns when stopped, or when the coordinator has ended: then JAX ends the process."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            reason = self._wait_for_a_reason()
            if reason is not None and not self.stopped.wait(_GRACE_SECONDS):
                self._end(reason)

    def _wait_for_a_reason(self) -> str | None:
        """The reason why this process must end; None if the watch was stopped."""
        known: dict[str, str] = {}
        since = time.monotonic()
        while not self.stopped.wait(_POLL_SECONDS):
            failed = self._read(_FAILED)
            for process in failed.keys() - {self._own}:
                return f"process {process} has ended: {failed[process]}"
            self._write_progress()
            found = self._read(_PROGRESS)
            if found != known or not all(found.values()):
                known, since = found, time.monotonic()
            elif time.monotonic() - since > _STALL_SECONDS:
                listed = ", ".join(f"process {name} at {at}" for name, at in sorted(found.items()))
                return (
                    f"no process has made progress for {_STALL_SECONDS:g} s ({listed}); find out "
                    "what one of them waits for, such as its disk, and give the same command again"
                )
        return None

    def _write_progress(self) -> None:
        if (own := _Own.progress or "") != self._written:
            self._client.key_value_set(f"{_PROGRESS}{self._own}", own, allow_overwrite=True)
            self._written = own

    def _read(self, folder: str) -> dict[str, str]:
        """The value of each process under `folder`, by its index."""
        return {
            key.rpartition("/")[2]: value for key, value in self._client.key_value_dir_get(folder)
        }

    def _end(self, reason: str) -> None:
        """Ends the process from this thread, since the main thread may wait in a collective."""
        self.ending = True
        sys.stdout.flush()
        print(f"error: {reason}", file=sys.stderr, flush=True)
        with contextlib.suppress(Exception):
            jax.distributed.shutdown()  # otherwise the last process to leave would be aborted
        os._exit(1)


def _distributed() -> Any:
    """JAX's key-value store (`client`), `process_id` and `num_processes`; None for one process.

    JAX has no public API for this store: `jax.distributed` hides it, and the functions of
    `multihost_utils` are collective operations of devices, which wait forever.
    """
    if not jax.distributed.is_initialized():
        return None
    try:
        from jax._src.distributed import global_state
    except ImportError as error:
        raise RunError(
            f"several processes need JAX's key-value store, which is not where jax "
            f"{jax.__version__} was expected to have it ({error}); install a version that "
            "pyproject.toml allows, or run one process"
        ) from error
    return global_state


def _wait(client: Any, key: str, deadline: float, whom: str) -> str:
    """Waits for the value of `key`."""
    begin = time.monotonic()
    has_warned = False
    while True:
        left = max(0.001, min(_POLL_SECONDS, deadline - time.monotonic()))
        try:
            return client.blocking_key_value_get(key, int(1000 * left))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise RunError(f"{whom}: process 0 cannot be reached ({error})") from error
        waited = time.monotonic() - begin
        if time.monotonic() >= deadline:
            raise RunError(
                f"no answer for {waited:.0f} s from {whom}; find out what it waits for, such as "
                "its disk, and give the same command again"
            )
        if waited > _PATIENCE_SECONDS and not has_warned:
            logging.warning("waiting for %s", whom)
            has_warned = True
