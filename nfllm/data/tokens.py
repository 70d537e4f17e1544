"""Documents as one flat file of token ids, with the position at which each document starts.

Layout of `tokens`: the ids of document 0, end-of-text, the ids of document 1, end-of-text, ...
`offsets` holds, as int64, where every document starts, and the total length last.
"""

from __future__ import annotations

import array
import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from etils import epath

from nfllm.config.paths import status


@dataclasses.dataclass(frozen=True)
class TokenFile:
    """Token ids of a split.

    Attributes:
      tokens: [n] uint16 or uint32, memory-mapped if the file is local.
      offsets: [documents + 1] int64.
    """

    tokens: np.ndarray
    offsets: np.ndarray

    @property
    def num_documents(self) -> int:
        """Number of documents in the file."""
        return len(self.offsets) - 1

    @classmethod
    def open(cls, directory: epath.PathLike, split: str, dtype: str) -> TokenFile:
        """Opens files written by a `TokenWriter`; a remote file is read into memory."""
        directory = epath.Path(directory)
        return cls(
            tokens=_open_array(directory / f"{split}.tokens", np.dtype(dtype)),
            offsets=_open_array(directory / f"{split}.offsets", np.dtype("<i8")),
        )


def token_dtype(vocab_size: int) -> str:
    """The smallest unsigned type that holds every id below `vocab_size`."""
    return "<u2" if vocab_size <= 1 << 16 else "<u4"


class TokenWriter:
    """Appends documents to a token file; use as a context manager."""

    def __init__(self, directory: Path, split: str, vocab_size: int, end_of_text_id: int) -> None:
        self._tokens = (directory / f"{split}.tokens").open("wb")
        self._offsets_path = directory / f"{split}.offsets"
        self._dtype = np.dtype(token_dtype(vocab_size))
        self._end = np.array([end_of_text_id], self._dtype).tobytes()
        self._offsets = array.array("q", [0])
        self._content = hashlib.sha256()
        self._num_bytes = 0

    def append(self, text_bytes: Sequence[bytes], ids: Sequence[np.ndarray]) -> None:
        """Adds documents, given as UTF-8 and as token ids."""
        for text, document in zip(text_bytes, ids, strict=True):
            self._tokens.write(document.astype(self._dtype).data)
            self._tokens.write(self._end)
            self._offsets.append(self._offsets[-1] + len(document) + 1)
            self._content.update(hashlib.sha256(text).digest())
            self._num_bytes += len(text)

    def statistics(self) -> dict[str, Any]:
        """Counts of the split; `content_sha256` depends only on the texts and their order."""
        documents = len(self._offsets) - 1
        tokens = self._offsets[-1] - documents
        return {
            "documents": documents,
            "bytes": self._num_bytes,
            "tokens": tokens,
            "bytes_per_token": round(self._num_bytes / max(1, tokens), 4),
            "content_sha256": self._content.hexdigest(),
        }

    def __enter__(self) -> TokenWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._tokens:
            if error is None:
                np.array(self._offsets, "<i8").tofile(self._offsets_path)


def _open_array(path: epath.Path, dtype: np.dtype) -> np.ndarray:
    local = os.fspath(path)
    if "://" in local:
        return np.frombuffer(path.read_bytes(), dtype)
    if status(path).length == 0:
        return np.empty(0, dtype)
    return np.memmap(local, dtype, mode="r")
