"""Makes one Ctrl-C end a command with exit status 130, from its first line on.

Until there is something to clean up, the process ends immediately. Later a KeyboardInterrupt is
raised. If it occurs where Python cannot propagate exceptions, such as in a callback of the garbage
collector (JAX has one), Python would only print it; so it is raised again a moment later.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import time
from types import FrameType

_AGAIN_SECONDS = 0.05


class _State:
    """Whether Ctrl-C has been pressed (never reset), and whether it is about to be raised again."""

    pressed = False
    waiting = False


def end_on_ctrl_c() -> None:
    """Makes SIGINT end the process immediately, while it only imports and reads arguments."""
    # Another handler means that the parent process wants SIGINT to be ignored.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))
        sys.unraisablehook = _raise_again


def raise_on_ctrl_c() -> None:
    """Makes SIGINT raise KeyboardInterrupt from here on, and again if Python swallows it."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _note)


def check_ctrl_c() -> None:
    """Raises KeyboardInterrupt if Ctrl-C was pressed and its exception was swallowed."""
    if _State.pressed:
        raise KeyboardInterrupt


def _note(number: int, frame: FrameType | None) -> None:
    del number, frame
    _State.pressed = True
    raise KeyboardInterrupt


def _press_later() -> None:
    time.sleep(_AGAIN_SECONDS)
    _State.waiting = False
    if hasattr(signal, "pthread_kill"):  # wakes the main thread if it sleeps
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:
        _thread.interrupt_main()


def _raise_again(unraisable: sys.UnraisableHookArgs) -> None:
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        if _State.waiting:  # a second one would interrupt the cleanup that the first begins
            return
        _State.waiting = True
        # Later, since Python could not propagate it from this hook either. threading.Timer would
        # wait here until its thread runs, and the exception could interrupt that on a busy machine.
        _thread.start_new_thread(_press_later, ())
    else:
        sys.__unraisablehook__(unraisable)
