"""Hides the errors of reads and writes that Orbax abandons when one of them has failed.

These errors only follow from the first one, which is raised. They come from Orbax's threads: as
lines of the log, and as tracebacks where a thread reports to an event loop that is closed already.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from logging import WARNING, LogRecord

from absl import logging


class _Before:
    """The earlier `sys.unraisablehook`, which still gets all other errors."""

    hook: Callable[[sys.UnraisableHookArgs], object] = sys.__unraisablehook__


def hush() -> None:
    """Hides them until `unhush`, which is not called after a failure: the threads may still run."""
    if sys.unraisablehook is not _report:
        _Before.hook, sys.unraisablehook = sys.unraisablehook, _report
    logging.get_absl_logger().addFilter(_is_not_from_orbax)


def unhush() -> None:
    """Shows them again; a hook that other code has set since then stays."""
    if sys.unraisablehook is _report:
        sys.unraisablehook = _Before.hook
    logging.get_absl_logger().removeFilter(_is_not_from_orbax)


def _report(unraisable: sys.UnraisableHookArgs) -> None:
    error = unraisable.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        _Before.hook(unraisable)


def _is_not_from_orbax(record: LogRecord) -> bool:
    return record.levelno < WARNING or "orbax" not in record.pathname
