"""What the commands print, on any terminal and into any pipe."""

from __future__ import annotations

import io
import os
import sys


def escape_unprintable() -> None:
    """Prints characters that the standard streams cannot encode as escapes.

    A file name need not be UTF-8 and a terminal need not be Unicode: a command would do its work
    and then end in a UnicodeEncodeError. Where there is no stream, nothing is printed.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (as long as the process)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
