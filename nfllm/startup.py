"""One Ctrl-C ends a command with the exit status 130, from its first line on.

Until there is something to clean up, the process ends at once. After that a KeyboardInterrupt is
raised. Where Python cannot pass that on, as from a callback of the garbage collector (JAX has one),
it would only print it: then it is raised again a moment later.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from types import FrameType

_AGAIN_SECONDS = 0.05


class _State:
    """Whether Ctrl-C has been pressed; it is never reset."""

    pressed = False


def end_on_ctrl_c() -> None:
    """Ends the process at once on SIGINT; for the time when it only imports and reads arguments."""
    if (
        signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):  # else whoever started the command has it ignored
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))
        sys.unraisablehook = _raise_again


def raise_on_ctrl_c() -> None:
    """Raises KeyboardInterrupt on SIGINT from here on, whatever Python does with the first one."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _note)


def check_ctrl_c() -> None:
    """Raises KeyboardInterrupt where Ctrl-C has been pressed and something has swallowed it."""
    if _State.pressed:
        raise KeyboardInterrupt


def _note(number: int, frame: FrameType | None) -> None:
    del number, frame
    _State.pressed = True
    raise KeyboardInterrupt


def _press() -> None:
    if hasattr(signal, "pthread_kill"):  # wakes the main thread where it sleeps
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:
        _thread.interrupt_main()


def _raise_again(unraisable: sys.UnraisableHookArgs) -> None:
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        # Not at once: Python could not pass it on from this hook either.
        timer = threading.Timer(_AGAIN_SECONDS, _press)
        timer.daemon = True
        timer.start()
    else:
        sys.__unraisablehook__(unraisable)
