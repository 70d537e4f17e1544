"""A single error type for the many that libraries raise about a damaged file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class DamagedError(Exception):
    """A file that is truncated, or is not of the format that its name says."""


@contextlib.contextmanager
def damage(*errors: type[Exception]) -> Iterator[None]:
    """Turns `errors`, and an OSError that does not come from the disk, into DamagedError."""
    try:
        yield
    except errors as error:
        raise DamagedError(" ".join(str(error).split())) from error
    except OSError as error:
        if error.errno is None:  # raised by Arrow or gzip; errors of the disk have a number
            raise DamagedError(" ".join(str(error).split())) from error
        raise
