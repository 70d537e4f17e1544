"""Times jobs in turns, in one process: a busy machine slows all alike, so ratios stay valid."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

_COMPILED = "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def compilations() -> Iterator[list[float]]:
    """A context whose value lists the compile time, in seconds, of each program compiled inside."""
    seconds: list[float] = []
    inside = True

    def note(event: str, duration: float, **_: object) -> None:
        if event == _COMPILED and inside:
            seconds.append(duration)

    jax.monitoring.register_event_duration_secs_listener(note)
    yield seconds
    inside = False


class Timing(NamedTuple):
    """Times of one job: seconds and CPU-seconds of each timed call, and seconds of the first call.

    `compilations` counts programs over all calls: 1 if the job is one program.
    """

    seconds: np.ndarray
    cpu_seconds: np.ndarray
    first_call_seconds: float
    compilations: int

    def quartiles(self) -> list[float]:
        """Seconds per call: first quartile, median, third quartile."""
        return np.percentile(self.seconds, [25, 50, 75]).tolist()


def interleave(jobs: dict[str, Callable[[], object]], warm: int, timed: int) -> dict[str, Timing]:
    """Calls every job once per round, in an order that is reversed from round to round.

    A job returns when its work is done. The first `warm` rounds are not timed.
    """
    compilations = dict.fromkeys(jobs, 0)
    running = ""

    def count(event: str, _seconds: float, **_: object) -> None:
        if event == _COMPILED and running:
            compilations[running] += 1

    jax.monitoring.register_event_duration_secs_listener(count)
    first: dict[str, float] = {}
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(1 + warm + timed):
        for running in list(jobs)[:: 1 if number % 2 else -1]:
            wall, cpu = time.perf_counter(), time.process_time()
            jobs[running]()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if number == 0:
                first[running] = wall
            elif number > warm:
                seconds[running].append(wall)
                cpu_seconds[running].append(cpu)
    running = ""
    return {
        name: Timing(
            np.asarray(seconds[name]),
            np.asarray(cpu_seconds[name]),
            first[name],
            compilations[name],
        )
        for name in jobs
    }


def ratio(one: np.ndarray, other: np.ndarray) -> float:
    """Median over rounds of one job's time divided by the other's."""
    return float(np.median(one / other))
