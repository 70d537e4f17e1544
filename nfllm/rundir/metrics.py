"""`metrics.jsonl` of a run directory: measurements and events, one JSON object a line."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from etils import epath

from nfllm.config import suggest
from nfllm.config.paths import is_local
from nfllm.rundir import METRICS_FILE, run_directory

if TYPE_CHECKING:
    import pandas

KINDS = ("train", "eval", "telemetry", "event")
_REMOTE_INTERVAL_SECONDS = 30.0


class MetricsWriter:
    """Adds lines to `metrics.jsonl` of the run directory `run`.

    On opening, an incomplete last line, as left by a killed process, is dropped. On a local file
    system every line is passed to the operating system immediately. Objects in remote storage
    (`gs://`) cannot be appended to, so the whole object is written again, at most every 30 seconds
    and by `flush` and `close`.

    Example:
      >>> with MetricsWriter("runs/relu") as metrics:
      ...     metrics.write("eval", step=250, eval_loss_nats=4.03, eval_perplexity=56.3)
    """

    def __init__(self, run: epath.PathLike) -> None:
        directory = epath.Path(run)
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / METRICS_FILE
        self._file: BinaryIO | None = None
        self._object: bytearray | None = None
        self._written_at = time.monotonic()
        if is_local(self._path):
            _repair(os.fspath(self._path))
            self._file = open(os.fspath(self._path), "ab")  # noqa: SIM115 (closed by close)
        else:
            whole = self._path.read_bytes() if self._path.exists() else b""
            self._object = bytearray(_without_torn_line(whole))

    def write(self, kind: str, step: int, **fields: Any) -> None:
        """`on_metrics`, with the fields by keyword."""
        self.on_metrics(step, kind, fields)

    def on_metrics(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """Adds one line.

        Args:
          step: optimizer steps completed.
          kind: one of `KINDS`.
          values: from field to number, string, list, dict, or NumPy or JAX array, possibly nested.
            Values that are not finite are written as `NaN`, `Infinity` and `-Infinity`.

        Raises:
          ValueError: an unknown kind, or a closed writer.
          TypeError: a value that cannot be written as JSON.
        """
        if kind not in KINDS:
            raise ValueError(f"unknown kind of metrics line {kind!r}; {suggest(kind, KINDS)}")
        line = json.dumps({"step": int(step), "kind": kind, **values}, default=_plain) + "\n"
        if self._file is not None:
            self._file.write(line.encode())
            self._file.flush()
        elif self._object is not None:
            self._object += line.encode()
            if time.monotonic() - self._written_at >= _REMOTE_INTERVAL_SECONDS:
                self.flush()
        else:
            raise ValueError(f"{self._path} is closed; open it again with MetricsWriter(run)")

    def flush(self) -> None:
        """Waits until every line is on storage, not only in the operating system's memory."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
        elif self._object is not None:
            self._path.write_bytes(bytes(self._object))
            self._written_at = time.monotonic()

    def close(self) -> None:
        """Flushes and closes; a second call does nothing."""
        self.flush()
        if self._file is not None:
            self._file.close()
        self._file = self._object = None

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@dataclasses.dataclass(frozen=True)
class Metrics:
    """The lines of `metrics.jsonl`.

    `rows` maps each of `KINDS` to its lines in order of their steps; events are in the order in
    which they happened. `warnings` lists what could not be read.
    """

    rows: dict[str, list[dict[str, Any]]]
    warnings: list[str]

    def series(self, kind: str, field: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps `[N]` and values `[N, ...]` of `field` over the lines of `kind` that have it.

        Both are empty if there is no line of that kind.

        Raises:
          ValueError: an unknown kind, or a field that no line of this kind has; the message
            suggests the nearest name.
        """
        fields = self.fields(kind)
        if fields and field not in fields:
            raise ValueError(f"no {kind!r} line has the field {field!r}; {suggest(field, fields)}")
        lines = [row for row in self.rows[kind] if field in row]
        steps = np.asarray([row["step"] for row in lines], np.int64)
        return steps, np.asarray([row[field] for row in lines], np.float64)

    def frame(self, kind: str | None = None) -> pandas.DataFrame:
        """The lines as a pandas table, one row for each line: `step`, `kind` and the fields.

        An array has a column for each entry, named by its indices: `entropy_nats.0.3` is the
        entropy of layer 0, head 3.

        Args:
          kind: kind of the lines; by default all kinds except events, in order of their steps.

        Raises:
          ValueError: an unknown kind; the message suggests the nearest name.
          ImportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("metrics.frame() needs pandas: pip install pandas") from error
        if kind is not None:
            self.fields(kind)
            lines = self.rows[kind]
        else:
            measured = [line for of in self.rows if of != "event" for line in self.rows[of]]
            lines = sorted(measured, key=lambda line: line["step"])
        return pandas.DataFrame.from_records([dict(_columns(line)) for line in lines])

    def fields(self, kind: str) -> list[str]:
        """The fields that lines of `kind` have, in alphabetical order.

        Raises:
          ValueError: an unknown kind; the message suggests the nearest name.
        """
        if kind not in self.rows:
            raise ValueError(f"unknown kind of metrics line {kind!r}; {suggest(kind, self.rows)}")
        return sorted({field for row in self.rows[kind] for field in row})


def read_metrics(run: epath.PathLike) -> Metrics:
    """Reads the valid lines of `metrics.jsonl` of the run directory `run`.

    A resumed run repeats steps. So its `resumed` event discards measurements from after the
    checkpoint that it resumes from, a `started` event discards all earlier measurements, and of
    several lines of one kind and step only the last counts. All events are kept. An incomplete last
    line and lines without a step or kind are left out and listed in `Metrics.warnings`. A missing
    file counts as empty, with a warning.
    """
    path = run_directory(run) / METRICS_FILE
    measured: dict[str, dict[int, dict[str, Any]]] = {kind: {} for kind in KINDS}
    events: list[dict[str, Any]] = []
    warnings: list[str] = []
    if not path.exists():
        warnings.append(f"{METRICS_FILE} is missing")
    for row in _lines(path.read_bytes() if path.exists() else b"", warnings):
        kind, step = row["kind"], row["step"]
        if kind == "event":
            events.append(row)
            if row.get("event") == "started":
                measured = {kind: {} for kind in KINDS}
            elif row.get("event") == "resumed":
                measured = {
                    name: {s: line for s, line in lines.items() if s <= step}
                    for name, lines in measured.items()
                }
        else:
            measured.setdefault(kind, {})[step] = row
    rows = {kind: [lines[step] for step in sorted(lines)] for kind, lines in measured.items()}
    rows["event"] = events
    return Metrics(rows=rows, warnings=warnings)


def _columns(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The entries of nested dicts and lists, with a name for each."""
    if not isinstance(value, dict | list):
        yield name, value
        return
    for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _columns(entry, f"{name}.{key}" if name else str(key))


def _lines(whole: bytes, warnings: list[str]) -> Iterator[dict[str, Any]]:
    """The lines of `whole` that can be read; the others are listed in `warnings`."""
    *lines, last = whole.split(b"\n")
    for number, line in enumerate([*lines, last] if last else lines, start=1):
        row = _parse(line)
        if row is None:
            is_last = number > len(lines)
            fault = "is incomplete" if is_last else "is not a JSON object with a step and a kind"
            warnings.append(f"{METRICS_FILE} line {number} {fault}; left out")
        else:
            yield row


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # ValueError: also of what is not UTF-8
        return None
    whole = isinstance(row, dict) and type(row.get("step")) is int and type(row.get("kind")) is str
    return row if whole else None


def _without_torn_line(whole: bytes) -> bytes:
    """Makes `whole` end in a line break: completes the last line if it is valid, else drops it."""
    start = whole.rfind(b"\n") + 1
    if start == len(whole):
        return whole
    return whole[:start] if _parse(whole[start:]) is None else whole + b"\n"


def _repair(path: str) -> None:
    if not os.path.exists(path):
        return
    with open(path, "r+b") as file:
        whole = file.read()
        repaired = _without_torn_line(whole)
        file.truncate(min(len(whole), len(repaired)))
        file.write(repaired[len(whole) :])


def _plain(value: object) -> object:
    if hasattr(value, "__array__"):
        return np.asarray(value).tolist()
    raise TypeError(f"a metrics line cannot hold {value!r} of type {type(value).__name__}")
