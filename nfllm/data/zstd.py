"""Reading of .zst files with larger windows than Arrow allows, as by `zstd --long=31`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, BinaryIO

ARROW_WINDOW = 1 << 27
_LARGEST_WINDOW = 1 << 31
_PACKED_BYTES = 16 << 10
_MAGIC = b"\x28\xb5\x2f\xfd"
_HEADER_BYTES = 18
_SINGLE_SEGMENT = 0x20


def window(path: Path) -> int:
    """Window in bytes of the file's first frame; 0 if the file does not begin with a frame.

    RFC 8878, section 3.1.1: a descriptor, then the window's exponent and mantissa. The window of a
    frame of a single segment is its whole content, whose size follows the dictionary's number.
    """
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    if len(header) < 6 or header[:4] != _MAGIC:
        return 0
    descriptor, rest = header[4], header[5:]
    if not descriptor & _SINGLE_SEGMENT:
        base = 1 << (10 + (rest[0] >> 3))
        return base + (base >> 3) * (rest[0] & 7)
    kind, number_bytes = descriptor >> 6, (0, 1, 2, 4)[descriptor & 3]
    size = rest[number_bytes : number_bytes + (1, 2, 4, 8)[kind]]
    return int.from_bytes(size, "little") + (256 if kind == 1 else 0)


def open_long(path: Path) -> BinaryIO:
    """All frames one after the other, with windows of up to 2 GiB.

    Reading raises EOFError if the last frame is truncated.

    Raises:
      OSError: the package `zstandard` is not installed.
    """
    try:
        import zstandard
    except ImportError as error:
        raise OSError(
            0,
            f"{path} was compressed with a window of {window(path) >> 20} MiB (zstd --long), more "
            "than can be read without the package zstandard; pip install zstandard, or decompress "
            "the file",
        ) from error
    return io.BufferedReader(
        _Frames(path, zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW))
    )


class _Frames(io.RawIOBase):
    # The package's own reader takes a truncated frame for the end of the file.

    def __init__(self, path: Path, decompressor: Any) -> None:
        self._file = path.open("rb")
        self._decompressor = decompressor
        self._frame = decompressor.decompressobj()
        self._begun = False
        self._packed = self._plain = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._plain:
            packed = self._packed or self._file.read(_PACKED_BYTES)
            if not packed:
                if self._begun:
                    raise EOFError("the last frame has no end")
                return 0
            try:
                self._plain = self._frame.decompress(packed)
            except Exception as error:  # a ZstdError, of a package that may not be installed
                raise OSError(str(error)) from error
            self._begun, self._packed = not self._frame.eof, self._frame.unused_data
            if self._frame.eof:
                self._frame = self._decompressor.decompressobj()
        size = min(len(buffer), len(self._plain))
        buffer[:size], self._plain = self._plain[:size], self._plain[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()
