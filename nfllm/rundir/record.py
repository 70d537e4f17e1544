"""The run directory: the names in it, and the record of a run, `config.json`.

    config.json      the whole config and what follows from it (`RunRecord`)
    corpus.json      the corpus card
    metrics.jsonl    measurements and events, one JSON object a line (`nfllm.rundir.metrics`)
    tokenizer.json   Hugging Face tokenizers file
    checkpoints/     Orbax
    report/          written by `nfllm.report`

A run directory is local, or any address that `etils.epath` can open, such as `gs://bucket/run`.
"""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

from absl import logging
from etils import epath

from nfllm.config import Config, ConfigError, DataConfig, ModelConfig
from nfllm.config.checks import names_of
from nfllm.config.overrides import key_type
from nfllm.config.paths import is_local, user_path
from nfllm.config.removal import model_at_end

FORMAT_VERSION = 1
RECORD_FILE = "config.json"
CORPUS_FILE = "corpus.json"
METRICS_FILE = "metrics.jsonl"
TOKENIZER_FILE = "tokenizer.json"
UNKNOWN_DATA = "unknown"
"""Dataset and fingerprint of an imported model."""
CHECKPOINTS_DIR = "checkpoints"
REPORT_DIR = "report"


class RunError(ValueError):
    """A run directory that cannot be read; the message names the file, the fault and a remedy."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """The source of a run's first parameters.

    `fingerprint` is the SHA-256 of the checksums of the source's parameters; `notes` say in words
    how the configs differ, and how parameters were changed to fit.
    """

    path: str
    step: int
    fingerprint: str
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        what = f"weights of {self.path} at step {self.step} ({self.fingerprint[:12]})"
        return "; ".join([what, *self.notes])


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """The content of `config.json`: enough to rebuild a run's model and to compare runs.

    `decayed_parameters` and `undecayed_parameters` name every parameter array once, by whether
    weight decay acts on it. `data_fingerprint` is the hash of corpus, tokenizer and split. `origin`
    is None if parameters were initialized at random. The file also says whether the model is
    norm-free, frozen or normalised (`statistics`), and which files registered its parts
    (`imports`).

    For an imported model only `config.model` is known and written: the other sections hold
    defaults, and both lists of parameters are empty.
    """

    config: Config
    vocab_size: int
    num_parameters: int
    data_fingerprint: str
    decayed_parameters: tuple[str, ...]
    undecayed_parameters: tuple[str, ...]
    nfllm_version: str
    origin: Origin | None = None

    @property
    def is_imported(self) -> bool:
        """Whether something other than nfllm trained the model."""
        return self.data_fingerprint == UNKNOWN_DATA


def imported_config(model: ModelConfig) -> Config:
    """The config of an imported model."""
    return Config(model=model, data=DataConfig(dataset=UNKNOWN_DATA, tokenizer=TOKENIZER_FILE))


def write_record(run: epath.PathLike, record: RunRecord) -> None:
    """Writes `config.json` of the run directory `run`, atomically."""
    config = record.config.to_dict()
    values = {
        "format_version": FORMAT_VERSION,
        "nfllm_version": record.nfllm_version,
        "config": {"model": config["model"]} if record.is_imported else config,
        "statistics": model_at_end(record.config).statistics,
        "imports": {
            key: {"file": source.file, "sha256": source.sha256}
            for key, source in record.config.sources().items()
        },
        "vocab_size": record.vocab_size,
        "num_parameters": record.num_parameters,
        "data_fingerprint": record.data_fingerprint,
        "decayed_parameters": list(record.decayed_parameters),
        "undecayed_parameters": list(record.undecayed_parameters),
    }
    if record.origin is not None:
        values["origin"] = dataclasses.asdict(record.origin)
    directory = epath.Path(run)
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(directory / RECORD_FILE, (json.dumps(values, indent=1) + "\n").encode())


def read_record(run: epath.PathLike) -> RunRecord:
    """Reads `config.json` of the run directory `run`.

    Raises:
      RunError: the directory or the file is missing, the file is incomplete, its format is newer
        than this nfllm reads, or its config has keys or values that this nfllm does not know.
    """
    directory = run_directory(run)
    path = directory / RECORD_FILE
    if not directory.exists():
        raise RunError(f"{directory} does not exist; name the directory of a run")
    if not path.exists():
        raise RunError(
            f"{directory} has no {RECORD_FILE}: it is not a run directory, or its run stopped "
            "before training began"
        )
    try:
        values = json.loads(path.read_bytes())
    except ValueError as error:
        raise RunError(
            f"{path} is incomplete or not JSON ({error}); restore it, or run again into an empty "
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
            f"{FORMAT_VERSION}, so use a newer version"
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
    known = {*types, "format_version", "statistics", "imports", "origin"}
    unknown = sorted(values.keys() - known)
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
    _check_imported(path, values)
    sections = values["config"]
    if values["data_fingerprint"] == UNKNOWN_DATA:
        defaults = imported_config(ModelConfig()).to_dict()
        sections = {**defaults, "model": sections.get("model")}
    try:
        config = Config.from_dict(sections, recorded=True)
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
        origin=_origin(path, values.get("origin")),
    )


def _origin(path: epath.Path, values: Any) -> Origin | None:
    if values is None:
        return None
    try:
        return Origin(**{**values, "notes": tuple(values["notes"])})
    except (TypeError, KeyError) as error:
        raise RunError(f"{path}: origin={values!r} is not valid ({error!r})") from error


def _check_imported(path: epath.Path, values: dict[str, Any]) -> None:
    """Warns about each registered part of the model whose file has changed.

    Raises:
      RunError: the file of a part has not been imported.
    """
    for key, source in values.get("imports", {}).items():
        section, _, name = key.partition(".")
        chosen = values["config"][section][name]
        names = names_of(key_type(key))
        if names is None or chosen not in names:
            raise RunError(
                f"{path}: {key}={chosen!r} was registered by {source['file']}, which this program "
                "has not imported; import it before the run is read, or add "
                f"--import {source['file']} to the command"
            )
        found = names[chosen].source
        if found is not None and found.sha256 != source["sha256"]:
            logging.warning(
                "%s: %s=%r was registered by %s, but this program has it from %s, whose content "
                "differs",
                path,
                key,
                chosen,
                source["file"],
                found.file,
            )


def write_whole(path: epath.Path, content: bytes) -> None:
    """Replaces `path` atomically: a reader sees the old or the new content, never a part of it."""
    if not is_local(path):  # an object store shows an object only when it is complete
        path.write_bytes(content)
        return
    partial = f"{os.fspath(path)}.{os.getpid()}.partial"
    with open(partial, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, os.fspath(path))


def run_directory(path: epath.PathLike) -> epath.Path:
    """The directory of a run from a path given by a user; a leading ~ is the home directory.

    Raises:
      RunError: it is not a path, or needs packages that are not installed.
    """
    try:
        return user_path(path, "run directory")
    except ConfigError as error:
        raise RunError(str(error)) from error


def resolve(path: epath.Path) -> epath.Path:
    """The absolute path, without links; an address such as `gs://bucket/run` is unchanged.

    `epath.Path.resolve` would take an address for a name in the current directory.
    """
    return path.resolve() if is_local(path) else path
