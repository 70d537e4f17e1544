"""Output of the commands on any terminal and into any pipe."""

from __future__ import annotations

import io
import os
import sys


def escape_unprintable() -> None:
    """Makes the standard streams print characters that they cannot encode as escapes.

    A file name may not be UTF-8, and a terminal may not be Unicode: without this, a command would
    do its work and then end in a UnicodeEncodeError. If there is no stream, nothing is printed.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (as long as the process)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
