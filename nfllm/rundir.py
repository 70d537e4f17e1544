"""The run directory: the names in it, and its two plain-text records.

    config.json      what was run: the whole config and what follows from it (`RunRecord`)
    corpus.json      the corpus card
    metrics.jsonl    what happened: one JSON object a line (`MetricsWriter`, `read_metrics`)
    tokenizer.json   Hugging Face tokenizers file
    checkpoints/     Orbax
    report/          written by `nfllm.report`

A run directory is local, or any address that `etils.epath` can open, such as `gs://bucket/run`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from etils import epath

from nfllm.config import Config, ConfigError

FORMAT_VERSION = 1
RECORD_FILE = "config.json"
CORPUS_FILE = "corpus.json"
METRICS_FILE = "metrics.jsonl"
TOKENIZER_FILE = "tokenizer.json"
UNKNOWN_DATA = "unknown"
"""Dataset and fingerprint of a run that was imported."""
CHECKPOINTS_DIR = "checkpoints"
REPORT_DIR = "report"

KINDS = ("train", "eval", "telemetry", "event")
_REMOTE_INTERVAL_SECONDS = 30.0


class RunError(ValueError):
    """A run directory that cannot be read; the message names the file, the fault and a remedy."""


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What a run is: enough to build its model again and to tell whether two runs are comparable.

    `decayed_parameters` and `undecayed_parameters` name every parameter array once, by whether
    weight decay acts on it. `data_fingerprint` is the hash of corpus, tokenizer and split.
    """

    config: Config
    vocab_size: int
    num_parameters: int
    data_fingerprint: str
    decayed_parameters: tuple[str, ...]
    undecayed_parameters: tuple[str, ...]
    nfllm_version: str


def write_record(run: epath.PathLike, record: RunRecord) -> None:
    """Writes `config.json` of the run directory `run`, whole or not at all."""
    values = {
        "format_version": FORMAT_VERSION,
        "nfllm_version": record.nfllm_version,
        "config": record.config.to_dict(),
        "vocab_size": record.vocab_size,
        "num_parameters": record.num_parameters,
        "data_fingerprint": record.data_fingerprint,
        "decayed_parameters": list(record.decayed_parameters),
        "undecayed_parameters": list(record.undecayed_parameters),
    }
    directory = epath.Path(run)
    directory.mkdir(parents=True, exist_ok=True)
    _write_whole(directory / RECORD_FILE, (json.dumps(values, indent=1) + "\n").encode())


def read_record(run: epath.PathLike) -> RunRecord:
    """Reads `config.json` of the run directory `run`.

    Raises:
      RunError: the directory or the file is missing, the file is half-written, its format is newer
        than this nfllm reads, or its config has keys or values that this nfllm does not know.
    """
    directory = epath.Path(run)
    path = directory / RECORD_FILE
    if not directory.exists():
        raise RunError(f"{directory} does not exist; name the directory of a run")
    if not path.exists():
        raise RunError(
            f"{directory} has no {RECORD_FILE}: it is not a run directory, or its run stopped "
            "before it began"
        )
    try:
        values = json.loads(path.read_bytes())
    except ValueError as error:
        raise RunError(
            f"{path} is half-written or not JSON ({error}); restore it, or run again into an empty "
            "directory"
        ) from error
    return _record(path, values)


def _record(path: epath.Path, values: Any) -> RunRecord:
    version = values.get("format_version") if isinstance(values, dict) else None
    if type(version) is not int or version < 1:
        raise RunError(f"{path} has no format_version; it was not written by nfllm")
    writer = f"written by nfllm {values.get('nfllm_version', 'of unknown version')}"
    if version > FORMAT_VERSION:
        raise RunError(
            f"{path} has format_version {version}, {writer}; this nfllm reads up to "
            f"{FORMAT_VERSION}, so read it with a newer one"
        )
    types: dict[str, type] = {
        "nfllm_version": str,
        "config": dict,
        "vocab_size": int,
        "num_parameters": int,
        "data_fingerprint": str,
        "decayed_parameters": list,
        "undecayed_parameters": list,
    }
    unknown = sorted(values.keys() - types.keys() - {"format_version"})
    if unknown:
        raise RunError(
            f"{path} has the unknown key {unknown[0]!r}, {writer}; read it with that version"
        )
    for key, expected in types.items():
        if key not in values:
            raise RunError(f"{path} lacks the key {key!r}, {writer}")
        if type(values[key]) is not expected:
            raise RunError(
                f"{path}: {key} is of type {type(values[key]).__name__}, expected "
                f"{expected.__name__}"
            )
    try:
        config = Config.from_dict(values["config"], recorded=True)
    except ConfigError as error:
        raise RunError(f"{path}, {writer}, is not a config of this nfllm: {error}") from error
    return RunRecord(
        config=config,
        vocab_size=values["vocab_size"],
        num_parameters=values["num_parameters"],
        data_fingerprint=values["data_fingerprint"],
        decayed_parameters=tuple(values["decayed_parameters"]),
        undecayed_parameters=tuple(values["undecayed_parameters"]),
        nfllm_version=values["nfllm_version"],
    )


class MetricsWriter:
    """Adds lines to `metrics.jsonl` of the run directory `run`.

    A line torn by a kill is dropped on opening; what was whole stays. On a local file system every
    line is handed to the operating system at once. Elsewhere (`gs://`) nothing can be appended, so
    the whole object is written again, at most every 30 seconds and by `flush` and `close`.

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
        """Adds one line.

        Args:
          kind: one of `KINDS`.
          step: optimizer steps completed.
          **fields: numbers, strings, lists, dicts, and arrays of numpy or JAX, also nested. Values
            that are not finite are kept, as `NaN`, `Infinity` and `-Infinity`.

        Raises:
          ValueError: an unknown kind, or a closed writer.
          TypeError: a field that JSON cannot hold.
        """
        if kind not in KINDS:
            raise ValueError(
                f"unknown kind of metrics line {kind!r}; choose from {', '.join(KINDS)}"
            )
        line = json.dumps({"step": int(step), "kind": kind, **fields}, default=_plain) + "\n"
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
        """Returns when every line is on storage, not only in the operating system's memory."""
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

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@dataclasses.dataclass(frozen=True)
class Metrics:
    """The lines of `metrics.jsonl`.

    `rows` has every one of `KINDS` as a key, and lists of lines in order of their step; of events,
    in the order in which they happened.
    `warnings` says what could not be read.
    """

    rows: dict[str, list[dict[str, Any]]]
    warnings: list[str]

    def series(self, kind: str, field: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps `[N]` and values `[N, ...]` of `field` over the lines of `kind` that have it."""
        lines = [row for row in self.rows[kind] if field in row]
        steps = np.asarray([row["step"] for row in lines], np.int64)
        return steps, np.asarray([row[field] for row in lines], np.float64)


def read_metrics(run: epath.PathLike) -> Metrics:
    """Reads what is whole in `metrics.jsonl` of the run directory `run`.

    A resumed run repeats steps. Its `resumed` event discards what was measured after the checkpoint
    that it goes on from, a `started` event all that was measured before it, and of several lines of
    one kind and step the last one counts. Events are all kept. A torn last line and lines that are
    no record are left out, and `Metrics.warnings` names them; a missing file is an empty one with a
    warning.
    """
    path = epath.Path(run) / METRICS_FILE
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


def _lines(whole: bytes, warnings: list[str]) -> Iterator[dict[str, Any]]:
    """The records in `whole`; appends to `warnings` what is none."""
    *lines, last = whole.split(b"\n")
    for number, line in enumerate([*lines, last] if last else lines, start=1):
        row = _parse(line)
        if row is None:
            fault = "is torn" if number > len(lines) else "is not a record with a step and a kind"
            warnings.append(f"{METRICS_FILE} line {number} {fault}; left out")
        else:
            yield row


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:  # also what UnicodeDecodeError is
        return None
    whole = isinstance(row, dict) and type(row.get("step")) is int and type(row.get("kind")) is str
    return row if whole else None


def _without_torn_line(whole: bytes) -> bytes:
    """Ends `whole` with a line break: completes the last line if it is a record, else drops it."""
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


def _write_whole(path: epath.Path, content: bytes) -> None:
    """Replaces `path`; a reader sees the old content or the new, never a part."""
    if not is_local(path):  # an object store shows an object only when it is complete
        path.write_bytes(content)
        return
    partial = f"{os.fspath(path)}.{os.getpid()}.partial"
    with open(partial, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, os.fspath(path))


def is_local(path: epath.Path) -> bool:
    """Whether `path` is on a file system, where files can be appended to and renamed."""
    return "://" not in os.fspath(path)


def resolve(path: epath.Path) -> epath.Path:
    """`path` from the root, without links; an address such as `gs://bucket/run` stays as it is.

    `epath.Path.resolve` takes an address for a name in the current directory.
    """
    return path.resolve() if is_local(path) else path


def _plain(value: Any) -> float | Sequence[Any]:
    if hasattr(value, "__array__"):
        return np.asarray(value).tolist()
    raise TypeError(f"a metrics line cannot hold {value!r} of type {type(value).__name__}")
