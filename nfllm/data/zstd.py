"""Reading of .zst files with larger windows than Arrow allows, as by `zstd --long=31`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, BinaryIO

ARROW_WINDOW = 1 << 27
_LARGEST_WINDOW = 1 << 31
_PACKED_BYTES = 16 << 10
_MAGIC = b"\x28\xb5\x2f\xfd"


def window(path: Path) -> int:
    """Window in bytes of the file's first frame; 0 if the file does not begin with a frame.

    RFC 8878, section 3.1.1.1: a descriptor, then the window's exponent and mantissa; 0 as well if
    the frame is a single segment, which has no window.
    """
    with path.open("rb") as file:
        header = file.read(6)
    if len(header) < 6 or header[:4] != _MAGIC or header[4] & 0x20:
        return 0
    base = 1 << (10 + (header[5] >> 3))
    return base + (base >> 3) * (header[5] & 7)


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
