"""Silence about the reads and writes that Orbax abandons when one of them has failed.

Their errors follow from the one that is raised, and come from threads of their own: in the log, and
as tracebacks where such a thread reports to an event loop that has been closed meanwhile.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from logging import WARNING, LogRecord

from absl import logging


class _Before:
    """What `sys.unraisablehook` was, and still is for all else."""

    hook: Callable[[sys.UnraisableHookArgs], object] = sys.__unraisablehook__


def hush() -> None:
    """Until `unhush`; after a failure it is better left, since the threads may still be at it."""
    if sys.unraisablehook is not _report:
        _Before.hook, sys.unraisablehook = sys.unraisablehook, _report
    logging.get_absl_logger().addFilter(_is_not_from_orbax)


def unhush() -> None:
    """Ends the silence; what other code has hooked up in between is left."""
    if sys.unraisablehook is _report:
        sys.unraisablehook = _Before.hook
    logging.get_absl_logger().removeFilter(_is_not_from_orbax)


def _report(unraisable: sys.UnraisableHookArgs) -> None:
    error = unraisable.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        _Before.hook(unraisable)


def _is_not_from_orbax(record: LogRecord) -> bool:
    return record.levelno < WARNING or "orbax" not in record.pathname
