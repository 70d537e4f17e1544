"""The rows of one part, in a JSON file that is valid after every row and can be continued."""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Rows:
    """Rows by name, on disk.

    Attributes:
      part: name of the part.
      folder: the directory of all parts.
      limit_seconds: how long the part may take.
      found: the rows so far. A failed row has the key `error`.
    """

    def __init__(self, folder: Path, part: str, about: Row, limit_seconds: float) -> None:
        """Reads earlier rows; `about` describes the machine and is written with the rows."""
        self.part, self.folder, self.limit_seconds = part, folder, limit_seconds
        self._path = folder / f"{part}.json"
        self._begin = time.monotonic()
        self._about = about
        self._earlier_seconds = 0.0
        self.found: dict[str, Row] = {}
        if self._path.exists():
            before = json.loads(self._path.read_text())
            self.found, self._earlier_seconds = before["rows"], before["seconds"]

    def has(self, name: str) -> bool:
        """Whether a row exists and did not fail."""
        return name in self.found and "error" not in self.found[name]

    def add(self, name: str, measure: Callable[[], Row]) -> None:
        """Measures a row, unless it exists; an exception becomes the row's `error`."""
        if self.has(name):
            return
        try:
            row = measure()
        except Exception as error:
            traceback.print_exc()
            row = {"error": f"{type(error).__name__}: {_first_line(error)}"}
        self.found[name] = row
        print(f"{self.part}: {name}: {json.dumps(row)}", flush=True)
        self.write(complete=False)

    def write(self, *, complete: bool) -> None:
        """Replaces the file; a part is complete when all its rows were measured."""
        failed = any("error" in row for row in self.found.values())
        content = {
            "part": self.part,
            **self._about,
            "complete": complete and not failed,
            "ended": complete,
            "seconds": self._earlier_seconds + time.monotonic() - self._begin,
            "rows": self.found,
        }
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(partial, self._path)


def out_of_memory(error: Exception) -> bool:
    """Whether an error of JAX or torch says that a device has too little memory."""
    text = f"{type(error).__name__} {error}".lower()
    return "resource_exhausted" in text or "out of memory" in text or "outofmemory" in text


def halving(sequences: int, measure: Callable[[int], Row]) -> Row:
    """`measure(sequences)`, with half as many until they fit into memory; a note says how many."""
    fewer = sequences
    while True:
        try:
            row = measure(fewer)
        except Exception as error:
            if fewer == 1 or not out_of_memory(error):
                raise
            fewer //= 2
            print(f"too little memory: {fewer} sequences", flush=True)
            continue
        row["sequences"] = fewer
        if fewer != sequences:
            row["note"] = f"{fewer} sequences, not {sequences}: too little memory"
        return row


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:300]
