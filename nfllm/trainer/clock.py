"""Tokens per second of training, without pauses."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Clock:
    """Times training steps, without pauses and without the first step, which compiles.

    Attributes:
      tokens_per_step: tokens of one step.
      trained_seconds: total time of all steps timed so far.

    Example:
      >>> clock = Clock(tokens_per_step=2048)
      >>> for step in range(3):
      ...     clock.tick()  # after a step
      ...     with clock.paused():
      ...         pass  # something else than training, such as an evaluation
      >>> clock.tokens_per_second > 0
      True
    """

    def __init__(self, tokens_per_step: int) -> None:
        self.tokens_per_step = tokens_per_step
        self._begin = time.perf_counter()
        self._first: float | None = None
        self._last: float | None = None
        self.trained_seconds = 0.0
        self._steps = 0
        self._lap_steps, self._lap_seconds = 0, 0.0

    @property
    def elapsed(self) -> float:
        """Seconds since the clock was made, pauses included."""
        return time.perf_counter() - self._begin

    @property
    def tokens_per_second(self) -> float:
        """Mean over all steps timed; NaN before the second."""
        return self._speed(self._steps, self.trained_seconds)

    def seconds_left(self, steps: int) -> float:
        """Seconds that `steps` more steps take at the pace so far, pauses included.

        NaN before the second step: the first one compiles, which can take longer than all others.
        """
        if self._first is None or not self._steps:
            return float("nan")
        return steps * (time.perf_counter() - self._first) / self._steps

    def tick(self) -> None:
        """Ends a step."""
        now = time.perf_counter()
        if self._first is None or self._last is None:
            self._first = now
        else:
            self._steps += 1
            self.trained_seconds += now - self._last
        self._last = now

    def lap(self) -> float:
        """Tokens per second since the last lap; NaN if no step was timed."""
        steps, seconds = self._steps - self._lap_steps, self.trained_seconds - self._lap_seconds
        self._lap_steps, self._lap_seconds = self._steps, self.trained_seconds
        return self._speed(steps, seconds)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time inside the block."""
        begin = time.perf_counter()
        yield
        if self._last is not None:
            self._last += time.perf_counter() - begin

    def _speed(self, steps: int, seconds: float) -> float:
        return steps * self.tokens_per_step / seconds if seconds else float("nan")
