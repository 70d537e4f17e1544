"""The rows of one part: a JSON file that is whole after every row, and goes on where it stopped."""

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
      found: the rows so far. One that failed has the key `error`.
    """

    def __init__(self, folder: Path, part: str, about: Row, limit_seconds: float) -> None:
        """Reads what is there; `about` says which machine measures, and is kept with the rows."""
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
        """Whether a row is there and did not fail."""
        return name in self.found and "error" not in self.found[name]

    def add(self, name: str, measure: Callable[[], Row]) -> None:
        """Measures a row, unless it is there; one that fails says so, and the next can go on."""
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
    """Whether a device, of JAX or of torch, had too little memory."""
    text = f"{type(error).__name__} {error}".lower()
    return "resource_exhausted" in text or "out of memory" in text or "outofmemory" in text


def halving(sequences: int, measure: Callable[[int], Row]) -> Row:
    """`measure(sequences)`; with half as many where memory runs out, and the row says so."""
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
