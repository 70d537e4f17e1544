"""Finds prepared TFDS datasets and reads their records in order, without TensorFlow.

TFDS itself reads array_record without TensorFlow. It does not read tfrecord, and its parquet source
ignores a slice such as `train[:10%]`; both are read here through the split's file instructions.
"""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from etils import epath

from nfllm.config import ConfigError, suggest
from nfllm.data.damage import DamagedError, damage
from nfllm.data.records import MalformedRecordError

if TYPE_CHECKING:
    from tensorflow_datasets.core import DatasetBuilder, SplitInfo
    from tensorflow_datasets.core.utils.shard_utils import FileInstruction

_BATCH = 256
DATASET_INFO = "dataset_info.json"


def find_prepared(data_dir: epath.Path, name: str) -> epath.Path | None:
    """Directory of the prepared dataset `name[/config][:version]`; by default the newest version.

    Raises:
      ConfigError: the name matches several configurations.
    """
    path, _, version = name.partition(":")
    root = data_dir / path
    if not root.exists():
        return None
    found = sorted(info.parent for depth in (1, 2) for info in _infos(root, depth))
    found = [directory for directory in found if not version or directory.name == version]
    configs = sorted({os.fspath(directory.parent) for directory in found})
    if len(configs) > 1:
        names = ", ".join(os.path.relpath(config, data_dir) for config in configs)
        raise ConfigError(f"data.dataset={name!r} has several configurations: {names}; name one")
    return max(found, key=lambda directory: _version(directory.name), default=None)


def _infos(directory: epath.Path, depth: int) -> Iterator[epath.Path]:
    """Description files of datasets, `depth` levels down; not by glob, as names may hold [ or *."""
    if depth == 0:
        if (directory / DATASET_INFO).exists():
            yield directory / DATASET_INFO
        return
    for path in directory.iterdir():
        if path.is_dir():
            yield from _infos(path, depth - 1)


def open_prepared(data_dir: epath.Path, name: str) -> DatasetBuilder:
    """A read-only builder of the prepared dataset `name`.

    Raises:
      ConfigError: there is no such dataset under `data_dir`; the message lists those that exist.
    """
    import tensorflow_datasets as tfds

    directory = find_prepared(data_dir, name)
    if directory is None:
        names = {"python_stdlib", "python_source", "text_files", "codeparrot"}
        if data_dir.exists():
            names |= {
                path.parents[depth - 1].name for depth in (2, 3) for path in _infos(data_dir, depth)
            }
        raise ConfigError(
            f"data.dataset={name!r} is neither a built-in corpus nor a TFDS dataset prepared under "
            f"data.data_dir={os.fspath(data_dir)!r}; {suggest(name, names)}"
        )
    return tfds.builder_from_directory(os.fspath(directory))


def split_info(builder: DatasetBuilder, split: str) -> SplitInfo:
    """TFDS's description of a split or a slice of one.

    Raises:
      ConfigError: the dataset has no such split, or the slice is empty.
    """
    import tensorflow_datasets as tfds

    try:
        info = builder.info.splits[split]
        slices = tfds.core.ReadInstruction.from_spec(split).to_absolute(builder.info.splits)
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"{builder.info.full_name} has no split {split!r}: "
            f"{suggest(split, builder.info.splits)}"
        ) from error
    # TFDS reads a slice that ends before it begins as one to the end of the shard.
    reversed_ = any(None not in (s.from_, s.to) and s.to < s.from_ for s in slices)
    if reversed_ or not info.num_examples:
        raise ConfigError(
            f"{builder.info.full_name}: the split {split!r} holds no document; set data.split (or "
            "data.validation_source, if that names it) to another split"
        )
    return info


def read_split(builder: DatasetBuilder, split: str) -> Iterator[dict[str, Any]]:
    """Examples of a split or slice in order, as NumPy values.

    Raises:
      ConfigError: there is no such split, it is empty, or its format cannot be read.
      MalformedRecordError: a file is missing, truncated or damaged.
    """
    info = split_info(builder, split)
    if builder.info.file_format.value == "array_record":
        yield from _read_array_record(builder, split)
        return
    readers = {"tfrecord": read_tfrecord, "parquet": _read_parquet}
    kind = builder.info.file_format.value
    if kind not in readers:
        raise ConfigError(
            f"{builder.info.full_name} is stored as {kind}, but only array_record, "
            f"{' and '.join(readers)} can be read; convert it with `tfds convert_format`"
        )
    for instruction in info.file_instructions:
        yield from _read_file(builder, instruction, readers[kind])


def _read_file(
    builder: DatasetBuilder,
    instruction: FileInstruction,
    reader: Callable[[BinaryIO], Iterator[bytes]],
) -> Iterator[dict[str, Any]]:
    """The examples of a file that belong to a split."""
    from google.protobuf.message import DecodeError

    file, first = epath.Path(instruction.filename), instruction.skip
    stop, number = first + instruction.take, first
    try:
        with file.open("rb") as content:
            for record in itertools.islice(reader(content), first, stop):
                with damage(DecodeError, KeyError, TypeError, ValueError):
                    example = builder.info.features.deserialize_example_np(record)
                yield example
                number += 1
    except FileNotFoundError as error:
        raise _damaged(builder, number, f"{file.name} is missing") from error
    except DamagedError as error:
        raise _damaged(builder, number, f"{file.name}: {error}") from error
    if number < stop:
        raise _damaged(builder, number, f"{file.name} ends there, and should have {stop} records")


def _read_array_record(builder: DatasetBuilder, split: str) -> Iterator[dict[str, Any]]:
    source = builder.as_data_source(split)
    for start in range(0, len(source), _BATCH):
        try:
            examples = source.__getitems__(range(start, min(start + _BATCH, len(source))))
        except (RuntimeError, ValueError) as error:  # array_record has no errors of its own
            raise _damaged(builder, start, str(error)) from error
        # What lies beyond the end of a truncated file is read as empty records.
        empty = (i for i, e in enumerate(examples) if all(v is None for v in e.values()))
        if (first := next(empty, None)) is not None:
            raise _damaged(builder, start + first, "it is empty")
        yield from examples


def _damaged(builder: DatasetBuilder, record: int, why: str) -> MalformedRecordError:
    return MalformedRecordError(
        f"the dataset in {os.fspath(builder.data_path)} is damaged at record {record} or after it "
        f"({why}); remove that directory and start again"
    )


def read_tfrecord(file: BinaryIO) -> Iterator[bytes]:
    """Records of a TFRecord file: length, its checksum, data, checksum of the data.

    Raises:
      MalformedRecordError: the file is truncated, or a length or data do not match their checksum.
    """
    for number in itertools.count():
        header = file.read(12)
        if not header:
            return
        if len(header) == 12:
            length, checksum = struct.unpack("<QI", header)
            if masked_crc32c(header[:8]) != checksum:
                raise MalformedRecordError(
                    f"{file.name}: record {number} is damaged (checksum of its length)"
                )
            data = file.read(length)
            footer = file.read(4)
            if len(data) == length and len(footer) == 4:
                if struct.unpack("<I", footer) != (masked_crc32c(data),):
                    raise MalformedRecordError(
                        f"{file.name}: record {number} is damaged (checksum of its data)"
                    )
                yield data
                continue
        raise MalformedRecordError(f"{file.name}: truncated in record {number}")


def masked_crc32c(data: bytes) -> int:
    """The checksum of TFRecord files: CRC-32C, rotated by 15 bits, plus a constant.

    It takes about 80 seconds a GB, which the preparation of a corpus pays once.
    """
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC32C[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _crc32c_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_CRC32C = _crc32c_table()


def _read_parquet(file: BinaryIO) -> Iterator[bytes]:
    import pyarrow
    import pyarrow.parquet

    with damage(pyarrow.ArrowException):
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=_BATCH):
            for record in batch.column(0):
                yield record.as_py()


def _version(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in name.split(".") if part.isdigit())
