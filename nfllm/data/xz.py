"""Reading of .xz files with several streams and padding."""

from __future__ import annotations

import io
import lzma
from pathlib import Path
from typing import Any, BinaryIO

_PACKED_BYTES = 64 << 10


def open_xz(path: Path) -> BinaryIO:
    """All streams of an xz file one after the other, without the padding between them.

    Reading raises EOFError if the last stream is truncated, and lzma.LZMAError if a stream is
    followed by other data.
    """
    return io.BufferedReader(_XzStreams(path))


class _XzStreams(io.RawIOBase):
    # lzma.LZMAFile takes padding, or a stream with a damaged header, for the end of the file.

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._packed = b""
        self._stream = lzma.LZMADecompressor()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = b""
        while not data:
            if self._stream.eof:
                if not self._skip_padding():
                    return 0
                self._stream = lzma.LZMADecompressor()
            if self._stream.needs_input:
                self._packed = self._packed or self._file.read(_PACKED_BYTES)
                if not self._packed:
                    raise EOFError("the last stream has no end")
            data = self._stream.decompress(self._packed, len(buffer))
            self._packed = self._stream.unused_data  # empty before the end of the stream
        buffer[: len(data)] = data
        return len(data)

    def _skip_padding(self) -> bool:
        """Skips to the first byte of the next stream; returns False if there is none."""
        padding = 0
        while packed := self._packed or self._file.read(_PACKED_BYTES):
            self._packed = packed.lstrip(b"\0")
            padding += len(packed) - len(self._packed)
            if self._packed:
                break
        if padding % 4:
            raise lzma.LZMAError(f"{padding} bytes of padding are not a multiple of 4")
        return bool(self._packed)

    def close(self) -> None:
        self._file.close()
        super().close()
