"""The many errors about a damaged file as one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class DamagedError(Exception):
    """A file that ends early, or is not what its name says."""


@contextlib.contextmanager
def damage(*errors: type[Exception]) -> Iterator[None]:
    """Makes one error of `errors` and of an OSError that is not the disk's."""
    try:
        yield
    except errors as error:
        raise DamagedError(" ".join(str(error).split())) from error
    except OSError as error:
        if error.errno is None:  # Arrow's or gzip's; an error of the disk has a number
            raise DamagedError(" ".join(str(error).split())) from error
        raise
