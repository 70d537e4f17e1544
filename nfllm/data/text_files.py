"""Reads documents from jsonl, txt and parquet files, possibly compressed with gzip, xz or zstd."""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import json
import lzma
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from nfllm.config import ConfigError
from nfllm.data import separators, zstd
from nfllm.data.damage import DamagedError, damage
from nfllm.data.files import expand, files_below
from nfllm.data.parquet_rows import is_plain, parquet_rows
from nfllm.data.records import (
    MalformedPolicy,
    Record,
    no_text,
    not_utf8,
    plain_fields,
    printable,
    text_name,
)
from nfllm.data.xz import open_xz

# A .txt file is split into blocks of this size at line ends, so that some can be held out.
TEXT_BLOCK_BYTES = 16 << 10
# A longer line of a jsonl file counts as malformed: TFDS records must be smaller than 2 GiB.
_LONGEST_LINE = 1 << 30


def find_files(sources: str, key: str = "data.sources") -> list[Path]:
    """Expands paths, directories and globs, separated by commas, into a sorted list of files.

    `key` is the one whose value `sources` is, for errors.

    Raises:
      ConfigError: a source has no file, or a file of a format that cannot be read.
    """
    suffixes = tuple(kind + packed for kind in _FORMATS for packed in ("", *_COMPRESSIONS))
    found: dict[str, Path] = {}
    for path in expand(sources):
        if not path.exists():
            raise ConfigError(f"{key} names {str(path)!r}, but there is no such file")
        files = [path] if path.is_file() else files_below(path, lambda n: n.endswith(suffixes))
        if not files:
            raise ConfigError(
                f"{key} names {path}, which holds no file that ends in {', '.join(suffixes)}"
            )
        for file in files:
            if not file.name.endswith(suffixes):
                raise ConfigError(
                    f"{key} names {file}, which cannot be read; files must end in "
                    f"{', '.join(suffixes)}"
                )
            found.setdefault(os.path.realpath(file), file)
    return sorted(found.values())


def read_file(
    path: Path, text_field: str | None, policy: MalformedPolicy, separator: str | None = None
) -> Iterator[Record]:
    """Documents of one file, in order; with a separator, each is split at it.

    Fields besides the text are kept. Those of a txt file are `path` and `block`, the number of the
    block or of the part between separators.

    Raises:
      MalformedRecordError: a record cannot be read and `policy` raises; it names file and line.
    """
    kind = next(
        kind for kind in _FORMATS if path.name.removesuffix(_compression(path)).endswith(kind)
    )
    try:
        with _opened(path) as file:
            if kind == ".txt" and separator:
                yield from _read_separated_txt(file, path, separator, policy)
                return
            for record in _FORMATS[kind](file, path, text_field, policy):
                parts = record.text.split(separator) if separator else [record.text]
                if len(parts) == 1:
                    yield record
                else:
                    texts = (part.strip("\r\n") for part in parts)
                    yield from (Record(text, record.fields) for text in texts if text)
    except DamagedError as error:
        policy.report(f"{path}: damaged or truncated file: {error}")


def _read_jsonl(
    file: BinaryIO, path: Path, text_field: str | None, policy: MalformedPolicy
) -> Iterator[Record]:
    for number, line in enumerate(_lines(file), start=1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        if len(line) > _LONGEST_LINE:
            policy.report(f"{where}: longer than {_LONGEST_LINE} bytes")
            continue
        try:
            values = json.loads(line)
        except UnicodeDecodeError as error:
            policy.report(f"{where}: {not_utf8(error)}")
            continue
        except (ValueError, RecursionError) as error:  # ValueError: also an integer too long
            policy.report(f"{where}: malformed JSON: {error}")
            continue
        if not isinstance(values, dict):
            policy.report(f"{where}: a JSON object was expected, not {type(values).__name__}")
            continue
        name = text_name(list(values), text_field)
        if name is None:
            policy.report(f"{where}: {no_text(list(values), text_field)}")
            continue
        text = _valid_text(values[name], where, name, policy)
        if text is not None:
            yield Record(text, plain_fields(values, name))


def _read_txt(
    file: BinaryIO, path: Path, text_field: str | None, policy: MalformedPolicy
) -> Iterator[Record]:
    del text_field  # a text file has no fields
    offset, carried, number = 0, b"", 0
    while block := carried + _read(file.read, TEXT_BLOCK_BYTES - len(carried)):
        block += _read(file.readline, TEXT_BLOCK_BYTES)
        block, carried = _whole_characters(block)
        text = policy.decode(block, f"{path}, block of {len(block)} bytes from byte {offset}")
        if text is not None:
            yield Record(text, {"path": printable(path.name), "block": str(number)})
        offset, number = offset + len(block), number + 1


def _read_separated_txt(
    file: BinaryIO, path: Path, separator: str, policy: MalformedPolicy
) -> Iterator[Record]:
    read = functools.partial(_read, file.read)
    parts = separators.split(read, separator.encode("utf-8", "surrogateescape"), _LONGEST_LINE)
    for number, document in enumerate(parts):
        where = f"{path}, document {number}"
        if document is None:
            policy.report(f"{where}: longer than {_LONGEST_LINE} bytes")
            continue
        text = policy.decode(document, where)
        if text is not None:
            yield Record(text, {"path": printable(path.name), "block": str(number)})


def _read_parquet(
    file: BinaryIO, path: Path, text_field: str | None, policy: MalformedPolicy
) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    with contextlib.ExitStack() as stack:
        if not file.seekable() or _compression(path):
            whole = stack.enter_context(tempfile.TemporaryFile())
            while chunk := _read(file.read, 1 << 20):
                whole.write(chunk)
            file = whole
        with damage(pyarrow.ArrowException, UnicodeDecodeError):
            table = pyarrow.parquet.ParquetFile(file)
            schema = table.schema_arrow
        name = text_name(schema.names, text_field)
        if name is None:
            policy.report(f"{path}: {no_text(schema.names, text_field)}")
            return
        columns = [field.name for field in schema if is_plain(field.type)]
        if name not in columns:
            kind = schema.field(name).type
            for row in range(table.metadata.num_rows):
                policy.report(f"{path}, row {row}: field {name!r} is of type {kind}, expected text")
            return
        for row, values in parquet_rows(table, columns, path, policy):
            text = _valid_text(values[name], f"{path}, row {row}", name, policy)
            if text is not None:
                yield Record(text, plain_fields(values, name))


_Reader = Callable[[BinaryIO, Path, str | None, MalformedPolicy], Iterator[Record]]
_FORMATS: dict[str, _Reader] = {
    ".jsonl": _read_jsonl,
    ".json": _read_jsonl,
    ".txt": _read_txt,
    ".parquet": _read_parquet,
}


def _open_zstd(path: Path) -> BinaryIO:
    import pyarrow

    if zstd.window(path) > zstd.ARROW_WINDOW:
        return zstd.open_long(path)
    # Unlike the zstandard package, Arrow raises if the last frame is truncated.
    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"))


_COMPRESSIONS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.GzipFile,
    ".xz": open_xz,
    ".zst": _open_zstd,
}


def _compression(path: Path) -> str:
    return path.suffix if path.suffix in _COMPRESSIONS else ""


def _opened(path: Path) -> BinaryIO:
    compression = _compression(path)
    if not compression:
        return path.open("rb")
    if not path.stat().st_size:  # what an interrupted copy leaves; not every decompressor objects
        raise DamagedError("it has no bytes")
    return _COMPRESSIONS[compression](path)


def _read(read: Callable[[int], bytes], size: int) -> bytes:
    """`read(size)`, with the errors of all decompressors as DamagedError."""
    with damage(EOFError, zlib.error, lzma.LZMAError):
        return read(size)


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines; a line that is too long is truncated, and its rest skipped."""
    while line := _read(file.readline, _LONGEST_LINE + 1):
        yield line
        while len(line) > _LONGEST_LINE and not line.endswith(b"\n"):
            line = _read(file.readline, _LONGEST_LINE + 1)


def _whole_characters(block: bytes) -> tuple[bytes, bytes]:
    """Splits off an incomplete UTF-8 character at the end of the block."""
    for back in range(1, min(4, len(block)) + 1):
        byte = block[-back]
        if byte & 0xC0 == 0x80:
            continue
        length = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        if length > back and len(block) > back:
            return block[:-back], block[-back:]
        break
    return block, b""


def _valid_text(text: object, where: str, name: str, policy: MalformedPolicy) -> str | None:
    if not isinstance(text, str):
        policy.report(f"{where}: field {name!r} is of type {type(text).__name__}, expected text")
        return None
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        policy.report(f"{where}: not UTF-8: lone surrogate at character {error.start} of {name!r}")
        return None
    return text
