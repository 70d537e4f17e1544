"""One error in place of the many types that libraries raise about a damaged file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class DamagedError(Exception):
    """A file that ends early, or is not of the format of its name."""


@contextlib.contextmanager
def damage(*errors: type[Exception]) -> Iterator[None]:
    """Raises DamagedError in place of `errors`, and of an OSError that is not of the disk."""
    try:
        yield
    except errors as error:
        raise DamagedError(" ".join(str(error).split())) from error
    except OSError as error:
        if error.errno is None:  # raised by Arrow or gzip; an error of the disk has a number
            raise DamagedError(" ".join(str(error).split())) from error
        raise
