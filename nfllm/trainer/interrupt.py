"""SIGINT and SIGTERM as a flag, so that a run stops between two steps and saves first."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import jax

from nfllm import startup


class Interrupt:
    """The signal that asked the run to stop; None if there was none."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)


def _to_sigterm(number: int, frame: FrameType | None) -> None:
    del frame
    signal.signal(number, signal.default_int_handler)
    os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def watch() -> Iterator[Interrupt]:
    """Catches SIGINT and SIGTERM within the block; a second Ctrl-C stops at once.

    Outside the main thread, where Python cannot handle signals, nothing is caught. With several
    processes, which must stop after the same step, JAX handles SIGTERM (`hosts.stop_agreed`), and
    Ctrl-C is turned into SIGTERM.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    handlers: dict[int, Callable[[int, FrameType | None], None]]
    if jax.process_count() == 1:
        handlers = {signal.SIGINT: interrupt._note, signal.SIGTERM: interrupt._note}
    else:
        handlers = {signal.SIGINT: _to_sigterm}
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        startup.check_ctrl_c()  # raises for a Ctrl-C before the handlers were set
        yield interrupt
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
