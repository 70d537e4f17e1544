"""TFDS builders of local corpora, written as array_record without TensorFlow.

    from nfllm.data.builders import PythonStdlib
    builder = PythonStdlib(data_dir="data")
    builder.download_and_prepare()
    builder.as_data_source("train")[0]["text"]

Importing this module imports tensorflow_datasets, so the other modules import it inside functions.
"""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import tensorflow_datasets as tfds

from nfllm.config import ConfigError
from nfllm.data.python_files import python_files, standard_library, standard_library_files
from nfllm.data.records import MalformedPolicy, MalformedRecordError, Record, printable
from nfllm.data.text_files import find_files, read_file

# What pip writes for packages installed with -e: paths of this machine, so that the corpus of
# installed packages would differ from machine to machine.
_NOT_SOURCE = ("__editable__*",)


@dataclasses.dataclass(kw_only=True)
class FilesConfig(tfds.core.BuilderConfig):
    """A list of local files and how they are read.

    Attributes:
      name: a digest of names, paths, sizes, times and options, so that changed files give another
        dataset.
      files: the files, as (name in the corpus, path).
      text_field: field of a record that holds the text; None: `text` or `content`.
      malformed: whether a record that cannot be read is an error or skipped.
      separator: string that separates documents within a text; None for none.
    """

    name: str = ""
    files: list[tuple[str, Path]] = dataclasses.field(default_factory=list, repr=False)
    text_field: str | None = None
    malformed: Literal["error", "skip"] = "error"
    separator: str | None = None

    def __post_init__(self) -> None:
        options = (self.text_field, self.malformed, self.separator)
        state = hashlib.sha256(repr(options).encode())
        for name, path in self.files:
            status = path.stat()
            # A copy may have the same size and modification time as the original; then its path
            # or its ctime differs.
            facts = (name, os.path.realpath(path), status.st_size)
            state.update(repr((*facts, status.st_mtime_ns, status.st_ctime_ns)).encode())
        self.name = f"files_{state.hexdigest()[:16]}"


class FilesBuilder(tfds.core.GeneratorBasedBuilder):
    """Documents with their fields as JSON; split `train` only, in the order of the files.

    Raises:
      ConfigError: there are no files.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "text and metadata, in file order"}
    DESCRIPTION: ClassVar[str]
    LICENSE: ClassVar[str | None] = None

    def __init__(self, *, config: FilesConfig, data_dir: str) -> None:
        if not config.files:
            raise ConfigError("no file to read; name at least one path or glob in data.sources")
        super().__init__(config=config, data_dir=data_dir, file_format="array_record")

    def _create_builder_config(self, builder_config: FilesConfig, version: Any) -> FilesConfig:
        """Avoids TFDS's warning about a config unknown to the class, which lists every file."""
        return builder_config

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {"text": tfds.features.Text(), "metadata": tfds.features.Text()}
            ),
            license=self.LICENSE,
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, Any]]]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, str]]]:
        policy = MalformedPolicy(self.builder_config.malformed)
        count = 0
        for record in self.records(policy):
            yield count, {"text": record.text, "metadata": json.dumps(record.fields)}
            count += 1
        if not count:
            files = self.builder_config.files
            raise MalformedRecordError(
                f"no document in {len(files)} files from {files[0][1]} on "
                f"({policy.skipped} malformed records were left out)"
            )
        self.info.metadata.update(policy.summary())

    @abc.abstractmethod
    def records(self, policy: MalformedPolicy) -> Iterator[Record]:
        """The documents of all files, in order."""


class PythonSource(FilesBuilder):
    """Python files of directories; one document a file, with the fields `path` and `package`.

    The package is the first name of the path: a directory, or a module without its suffix. Paths
    are relative to the root, or to its parent if the root itself is a package. Files that only
    point to packages installed with `pip install -e` are left out.

    Raises:
      ConfigError: there is no root, or a root is not a directory or has no Python file.
    """

    DESCRIPTION = "Python source files of local directories."

    def __init__(
        self,
        *,
        roots: list[Path],
        data_dir: str,
        malformed: Literal["error", "skip"] = "error",
        key: str = "data.sources",
    ) -> None:
        files = []
        for root in roots:
            base = root.parent if (root / "__init__.py").exists() else root
            found = python_files(root, exclude=_NOT_SOURCE, key=key)
            files += [(file.relative_to(base).as_posix(), file) for file in found]
        super().__init__(config=FilesConfig(files=files, malformed=malformed), data_dir=data_dir)

    def records(self, policy: MalformedPolicy) -> Iterator[Record]:
        """One document a file."""
        for name, path in self.builder_config.files:
            text = policy.decode(path.read_bytes(), str(path))
            if text is not None:
                package = name.partition("/")[0].removesuffix(".py")
                yield Record(text, {"path": printable(name), "package": printable(package)})


class PythonStdlib(PythonSource):
    """The source of the running interpreter's standard library."""

    DESCRIPTION = "The Python standard library, without tests, encodings and generated files."
    LICENSE = "PSF-2.0"

    def __init__(self, *, data_dir: str) -> None:
        root = standard_library()
        files = [(file.relative_to(root).as_posix(), file) for file in standard_library_files()]
        FilesBuilder.__init__(self, config=FilesConfig(files=files), data_dir=data_dir)


class TextFiles(FilesBuilder):
    """jsonl, txt and parquet files, possibly compressed; one document a record.

    Raises:
      ConfigError: there is no source, or a source has no file or a format that cannot be read.
    """

    DESCRIPTION = "Documents of local jsonl, txt and parquet files."

    def __init__(
        self,
        *,
        sources: str,
        data_dir: str,
        text_field: str | None = None,
        malformed: Literal["error", "skip"] = "error",
        separator: str | None = None,
        key: str = "data.sources",
    ) -> None:
        files = [(str(path), path) for path in find_files(sources, key)]
        config = FilesConfig(
            files=files, text_field=text_field, malformed=malformed, separator=separator
        )
        super().__init__(config=config, data_dir=data_dir)

    def records(self, policy: MalformedPolicy) -> Iterator[Record]:
        """One document a record."""
        config = self.builder_config
        for _, path in config.files:
            yield from read_file(path, config.text_field, policy, config.separator)
