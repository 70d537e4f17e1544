"""A lock that allows one process at a time in a run directory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from absl import logging
from etils import epath

from nfllm.rundir import RunError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def hold(run: epath.Path, flag: str = "--workdir") -> Iterator[None]:
    """Locks the directory for this process; the kernel releases it when the process ends.

    `flag` is the one that names the directory, for the error.

    Remote directories (`gs://`) are not locked. If the file system does not support locks, there is
    a warning.

    Raises:
      RunError: another process has locked it.
    """
    if fcntl is None or "://" in str(run):
        yield
        return
    with open(os.fspath(run / ".lock"), "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise RunError(
                f"{run} is in use by process {file.read() or '?'}; wait for it, stop it, or give "
                f"another {flag}"
            ) from error
        except OSError as error:
            logging.warning("%s cannot be locked (%s): do not start a second run in it", run, error)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
