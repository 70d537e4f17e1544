"""SIGINT and SIGTERM as a flag, so that a run stops between two steps and saves first."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import jax


class Interrupt:
    """Which signal asked the run to stop; None while none has."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)


@contextlib.contextmanager
def watch() -> Iterator[Interrupt]:
    """Notes SIGINT and SIGTERM instead of dying of them; a second Ctrl-C stops at once.

    Nothing is noted outside the main thread, where Python cannot handle signals, nor with several
    processes, which must stop after the same step: there JAX handles SIGTERM
    (`hosts.stop_agreed`).
    """
    interrupt = Interrupt()
    alone = jax.process_count() == 1
    if not alone or threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, interrupt._note) for number in numbers}
    try:
        yield interrupt
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
