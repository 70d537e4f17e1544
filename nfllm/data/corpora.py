"""The corpus that a configuration names: its documents, and the facts for its card.

- `python_stdlib`, `python_source`, `text_files`: local files, through the builders of this package.
- `codeparrot`: two repositories of the Hugging Face hub, downloaded only for this name.
- any other name: a TFDS dataset that is already prepared under `data.data_dir`.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

from nfllm.config import ConfigError, DataConfig
from nfllm.config.paths import status
from nfllm.data import tfds_reader
from nfllm.data.files import expand
from nfllm.data.records import MalformedPolicy, Record, no_text, plain_fields, text_name

if TYPE_CHECKING:
    from tensorflow_datasets.core import DatasetBuilder

_CODEPARROT = "huggingface-course/codeparrot-ds-{}"
_LICENCE_FIELDS = ("license", "licence")


@dataclasses.dataclass
class Part:
    """One split of one TFDS dataset.

    Attributes:
      builder: the TFDS builder; prepared before the first record is read.
      split: name of the split, or a slice of one.
      validation: whether all its documents are for validation.
      origin: where the builder's text comes from, for the corpus card.
    """

    builder: DatasetBuilder
    split: str
    validation: bool = False
    origin: str = ""

    def __str__(self) -> str:
        origin = f" of {self.origin}" if self.origin else ""
        return f"{self.builder.info.full_name} {self.split}{origin}"


class Corpus:
    """Documents of one or two prepared datasets.

    Attributes:
      identity: facts that change if the documents change; known before the text is prepared.
    """

    def __init__(self, config: DataConfig, parts: list[Part], identity: list[str]) -> None:
        self._config = config
        self._parts = parts
        self._malformed: dict[str, Any] = {}
        self._licences: collections.Counter[str] = collections.Counter()
        self.identity = identity

    def __len__(self) -> int:
        return sum(
            tfds_reader.split_info(part.builder, part.split).num_examples for part in self._parts
        )

    def documents(self) -> Iterator[tuple[Record, bool]]:
        """Every document, with True if it comes from a separate validation split.

        Raises:
          MalformedRecordError: a document cannot be read and `data.malformed` is "error".
        """
        policy = MalformedPolicy(self._config.malformed)
        self._licences.clear()
        for part in self._parts:
            for record in _read(part, self._config, policy):
                for name in _LICENCE_FIELDS:
                    if name in record.fields:
                        self._licences[record.fields[name]] += 1
                yield record, part.validation
        self._malformed = policy.summary()

    @property
    def sources(self) -> list[str]:
        """What the documents are read from, for the corpus card."""
        return [str(part) for part in self._parts]

    def card(self) -> dict[str, Any]:
        """Sources, licences and malformed records; to be called after `documents` is exhausted."""
        infos = [part.builder.info for part in self._parts]
        stated = {info.redistribution_info.license for info in infos} - {""}
        malformed = [dict(info.metadata or {}) for info in infos]
        return {
            "dataset": self._config.dataset,
            "sources": self.sources,
            "licences": {
                "of_dataset": sorted(stated) or "not stated",
                "of_documents": dict(self._licences.most_common()),
            },
            "malformed": self._malformed["malformed"]
            + sum(made.get("malformed", 0) for made in malformed),
            "malformed_messages": [
                *(message for made in malformed for message in made.get("malformed_messages", [])),
                *self._malformed["malformed_messages"],
            ],
        }

    def prepare(self, *, progress: bool) -> None:
        """Writes the text as TFDS datasets, unless they exist already."""
        for part in self._parts:
            part.builder = _prepared(part.builder, progress)


def open_corpus(config: DataConfig, data_dir: epath.Path) -> Corpus:
    """The corpus of `config`, with its text kept under `data_dir`.

    The text of local corpora is kept under `default_data_dir()` if `data_dir` is remote.

    Raises:
      ConfigError: there is no such dataset, split or source file.
    """
    local = default_data_dir() if "://" in os.fspath(data_dir) else data_dir
    if config.dataset in _LOCAL:
        make = _LOCAL[config.dataset]
        builder = make(config, "sources", os.fspath(local))
        parts = [Part(builder, config.split, origin=config.sources)]
        if (held_out := config.validation_source) is not None:
            builder = make(config, "validation_source", os.fspath(local))
            parts.append(Part(builder, "train", validation=True, origin=held_out))
    elif config.dataset == "codeparrot":
        parts = [Part(_codeparrot("train", local), config.split)]
        if config.validation_source is not None:
            builder = _codeparrot("valid", local)
            parts.append(Part(builder, config.validation_source, validation=True))
    else:
        builder = tfds_reader.open_prepared(data_dir, config.dataset)
        parts = [Part(builder, config.split)]
        if config.validation_source is not None:
            parts.append(Part(builder, config.validation_source, validation=True))
    identity = [f"{part.builder.info.full_name} {part.split}" for part in parts]
    if config.dataset not in (*_LOCAL, "codeparrot"):
        identity += [state for part in parts for state in _stored_state(part)]
    return Corpus(config, parts, [*identity, config.text_field or "", config.malformed])


def default_data_dir() -> epath.Path:
    """Where prepared corpora and tokens are kept unless the configuration says otherwise.

    Raises:
      ConfigError: there is no home directory, so data.data_dir must be set.
    """
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if caches.startswith("~"):
        raise ConfigError(
            "data.data_dir=None means a folder in the home directory, which is unknown; set "
            "data.data_dir or HOME"
        )
    return epath.Path(caches) / "nfllm"


def _python_stdlib(config: DataConfig, key: str, data_dir: str) -> DatasetBuilder:
    del config, key  # it has no options
    from nfllm.data import builders

    return builders.PythonStdlib(data_dir=data_dir)


def _python_source(config: DataConfig, key: str, data_dir: str) -> DatasetBuilder:
    from nfllm.data import builders

    roots = expand(getattr(config, key), Path.is_dir)
    return builders.PythonSource(
        roots=roots, data_dir=data_dir, malformed=config.malformed, key=f"data.{key}"
    )


def _text_files(config: DataConfig, key: str, data_dir: str) -> DatasetBuilder:
    from nfllm.data import builders

    return builders.TextFiles(
        sources=getattr(config, key),
        data_dir=data_dir,
        text_field=config.text_field,
        malformed=config.malformed,
        separator=config.document_separator,
        key=f"data.{key}",
    )


_LOCAL: dict[str, Callable[[DataConfig, str, str], DatasetBuilder]] = {
    "python_stdlib": _python_stdlib,
    "python_source": _python_source,
    "text_files": _text_files,
}


def _codeparrot(which: str, data_dir: epath.Path) -> DatasetBuilder:
    """The builder of one CodeParrot repository; uses the network only if it is not prepared."""
    import tensorflow_datasets as tfds

    repository = _CODEPARROT.format(which)
    name = repository.replace("/", "__").replace("-", "_")
    if tfds_reader.find_prepared(data_dir, name) is not None:
        return tfds_reader.open_prepared(data_dir, name)
    try:
        import datasets  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "data.dataset=codeparrot needs the package `datasets`: pip install 'nfllm[codeparrot]'"
        ) from error
    return tfds.dataset_builders.HuggingfaceDatasetBuilder(
        hf_repo_id=repository, file_format="array_record", data_dir=os.fspath(data_dir)
    )


def _is_prepared(builder: DatasetBuilder) -> bool:
    return (builder.data_path / tfds_reader.DATASET_INFO).exists()


def _prepared(builder: DatasetBuilder, progress: bool) -> DatasetBuilder:
    """Writes the dataset unless it exists, and opens it; other processes may do so as well.

    The builder is opened anew: another process may have written the dataset since it was made.
    """
    import tensorflow_datasets as tfds

    tfds.display_progress_bar(progress and sys.stderr.isatty())
    try:
        if not _is_prepared(builder):
            with contextlib.redirect_stdout(io.StringIO()):
                builder.download_and_prepare()
    except OSError:
        # The other process was faster, so this one could not rename its directory into place.
        if not _is_prepared(builder):
            raise
    return tfds.builder_from_directory(os.fspath(builder.data_path))


def _stored_state(part: Part) -> list[str]:
    """Name, size and times of every file of a split, to notice if files are replaced.

    Raises:
      ConfigError: a file is missing.
    """
    state = []
    for instruction in tfds_reader.split_info(part.builder, part.split).file_instructions:
        file = epath.Path(instruction.filename)
        try:
            found = status(file)
        except FileNotFoundError as error:
            raise ConfigError(
                f"{part}: its file {file} is missing; remove that directory and prepare it again"
            ) from error
        state.append(f"{found.length} {found.mtime!r} {found.ctime!r} {instruction}")
    return state


def _read(part: Part, config: DataConfig, policy: MalformedPolicy) -> Iterator[Record]:
    names = list(part.builder.info.features)
    wanted = None if config.dataset in _LOCAL else config.text_field
    text_field = text_name(names, wanted)
    if text_field is None:
        raise ConfigError(f"{part.builder.info.full_name} has {no_text(names, wanted)}")
    for index, example in enumerate(tfds_reader.read_split(part.builder, part.split)):
        where = f"{part.builder.info.full_name}, split {part.split}, record {index}"
        raw = example[text_field]
        if not isinstance(raw, bytes):
            raise ConfigError(
                f"{where}: field {text_field!r} is of type {type(raw).__name__}, expected text; "
                "set data.text_field to another field"
            )
        text = policy.decode(raw, where)
        if text is None:
            continue
        values = {name: _plain(value) for name, value in example.items()}
        fields = plain_fields(values, text_field)
        if config.dataset in _LOCAL:
            fields = json.loads(fields["metadata"])
        yield Record(text, fields)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    return value.item() if isinstance(value, np.generic) else value
