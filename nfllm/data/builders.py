"""TFDS builders of local corpora, written as array_record without TensorFlow.

    from nfllm.data.builders import PythonStdlib
    builder = PythonStdlib(data_dir="data")
    builder.download_and_prepare()
    builder.as_data_source("train")[0]["text"]

Importing this module imports tensorflow_datasets; nothing else in nfllm does at import time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import tensorflow_datasets as tfds

from nfllm.data.python_files import python_files, standard_library, standard_library_files
from nfllm.data.records import MalformedPolicy, Record


@dataclasses.dataclass(kw_only=True)
class FilesConfig(tfds.core.BuilderConfig):
    """A list of local files.

    Attributes:
      name: a digest of paths, sizes and modification times, so that changed files are another
        dataset.
      files: the files, as (name in the corpus, path).
      malformed: what to do with a record that cannot be read.
    """

    files: list[tuple[str, Path]] = dataclasses.field(default_factory=list, repr=False)
    malformed: Literal["error", "skip"] = "error"

    @classmethod
    def of(cls, files: list[tuple[str, Path]], **options: Any) -> FilesConfig:
        """The configuration of `files`, named by their state on disk and the options."""
        state = hashlib.sha256(repr(sorted(options.items())).encode())
        for name, path in files:
            status = path.stat()
            state.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        return cls(name=f"files_{state.hexdigest()[:16]}", files=files, **options)


class _LocalBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Documents with their fields as JSON; split `train` only, in the order of the files."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "text and metadata, in file order"}
    DESCRIPTION = ""
    LICENSE = ""

    def __init__(self, *, config: FilesConfig, data_dir: str, **options: Any) -> None:
        super().__init__(config=config, data_dir=data_dir, file_format="array_record", **options)

    def _create_builder_config(self, builder_config: FilesConfig, version: Any) -> FilesConfig:
        return builder_config

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {"text": tfds.features.Text(), "metadata": tfds.features.Text()}
            ),
            license=self.LICENSE or None,
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, Any]]]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, str]]]:
        config = self.builder_config
        policy = MalformedPolicy(config.malformed)
        for index, record in enumerate(self._records(config, policy)):
            yield index, {"text": record.text, "metadata": json.dumps(record.fields)}
        self.info.metadata.update(policy.summary())

    def _records(self, config: FilesConfig, policy: MalformedPolicy) -> Iterator[Record]:
        raise NotImplementedError


class PythonSource(_LocalBuilder):
    """Python files of any directories; one document a file, field `path`."""

    DESCRIPTION = "Python source files of local directories."

    def __init__(self, *, roots: list[Path], malformed: str = "error", **options: Any) -> None:
        files = [
            (file.relative_to(root).as_posix(), file)
            for root in roots
            for file in python_files(root)
        ]
        super().__init__(config=FilesConfig.of(files, malformed=malformed), **options)

    def _records(self, config: FilesConfig, policy: MalformedPolicy) -> Iterator[Record]:
        for name, path in config.files:
            text = policy.decode(path.read_bytes(), str(path))
            if text is not None:
                yield Record(text, {"path": name})


class PythonStdlib(PythonSource):
    """The source of the running interpreter's standard library."""

    DESCRIPTION = "The Python standard library, without tests, encodings and generated files."
    LICENSE = "PSF-2.0"

    def __init__(self, **options: Any) -> None:
        root = standard_library()
        files = [(file.relative_to(root).as_posix(), file) for file in standard_library_files()]
        _LocalBuilder.__init__(self, config=FilesConfig.of(files), **options)
