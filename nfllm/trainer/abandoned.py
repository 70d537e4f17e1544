"""Hides the errors of reads and writes that Orbax abandons when one of them has failed.

They only follow from the first error, which is raised. They come from Orbax's threads: as log
messages, and as tracebacks of threads whose event loop is already closed.
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
    """Hides them until `unhush`. After a failure do not call it, since threads may still run."""
    if sys.unraisablehook is not _report:
        _Before.hook, sys.unraisablehook = sys.unraisablehook, _report
    logging.get_absl_logger().addFilter(_is_not_from_orbax)


def unhush() -> None:
    """Shows them again; a hook that other code has set in the meantime is kept."""
    if sys.unraisablehook is _report:
        sys.unraisablehook = _Before.hook
    logging.get_absl_logger().removeFilter(_is_not_from_orbax)


def _report(unraisable: sys.UnraisableHookArgs) -> None:
    error = unraisable.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        _Before.hook(unraisable)


def _is_not_from_orbax(record: LogRecord) -> bool:
    return record.levelno < WARNING or "orbax" not in record.pathname
