"""Opens the corpus that a configuration names, preparing it on first use."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from nfllm.config import DataConfig
from nfllm.data.records import Record


class Corpus:
    """Documents of a prepared TFDS dataset.

    Attributes:
      name: full TFDS name.
      card: what is known about the corpus beside its text: sources, licence, malformed records.
    """

    def __init__(self, builder: Any, config: DataConfig) -> None:
        self._builder = builder
        self._config = config
        self.name: str = builder.info.full_name
        self.card: dict[str, Any] = {
            "dataset": self.name,
            "sources": config.sources or config.dataset,
            "licence": builder.info.redistribution_info.license or "not stated",
            **(builder.info.metadata or {}),
        }

    def __len__(self) -> int:
        return self._builder.info.splits["train"].num_examples

    def identity(self) -> list[str]:
        """Changes when the files that are read change."""
        return [self.name]

    def documents(self) -> Iterator[tuple[Record, bool]]:
        """Every document, with True for those of a separate validation source."""
        for example in self._builder.as_data_source("train"):
            yield Record(example["text"].decode(), json.loads(example["metadata"])), False


def open_corpus(config: DataConfig, data_dir: epath.Path, *, progress: bool) -> Corpus:
    """Opens or prepares the corpus of `config` under `data_dir`."""
    from nfllm.data import builders

    builder = builders.PythonStdlib(data_dir=os.fspath(data_dir))
    _prepare(builder, progress)
    return Corpus(builder, config)


def _prepare(builder: Any, progress: bool) -> None:
    """Writes the dataset, unless it is there or another process writes it first."""
    import tensorflow_datasets as tfds

    if builder.is_prepared():
        return
    tfds.display_progress_bar(progress)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare()
    except FileExistsError:
        builder.info.read_from_directory(builder.data_dir)


def default_data_dir() -> Path:
    """Where prepared corpora and tokens are kept by default."""
    return Path.home() / ".cache" / "nfllm"
