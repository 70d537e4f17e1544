"""Windows of a fixed number of tokens over one flat token array.

- `documents` (Jha & Reagen, arXiv 2410.09637, and the Hugging Face course): every document is cut
  into windows from its start, and a remainder shorter than a window is dropped.
- `packed`: documents are concatenated, separated by the end-of-text token, and the result is cut;
  only its remainder is dropped.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from nfllm.data.tokens import TokenFile


class Windows:
    """A sequence of windows of `context_length` tokens.

    Attributes:
      context_length: tokens per window, T.
      num_tokens: tokens in all windows together.
      coverage: share of the documents' tokens that are in a window.
    """

    def __init__(
        self, file: TokenFile, context_length: int, kind: Literal["packed", "documents"]
    ) -> None:
        tokens, T = file.tokens, context_length
        self.context_length = T
        self._starts: np.ndarray | None = None
        if kind == "packed":
            self._length = len(tokens) // T
            self._rows = tokens[: self._length * T].reshape(self._length, T)
        else:
            self._starts = _document_starts(file.offsets, T)
            self._length = len(self._starts)
            rows = np.lib.stride_tricks.sliding_window_view(tokens, T) if self._length else None
            self._rows = np.empty((0, T), tokens.dtype) if rows is None else rows
        self.num_tokens = self._length * T
        separators = 0 if kind == "packed" else file.num_documents
        self.coverage = self.num_tokens / max(1, len(tokens) - separators)

    def __len__(self) -> int:
        return self._length

    def gather(self, indices: np.ndarray) -> np.ndarray:
        """Windows number `indices` (shape [n], each in `range(len(self))`) as int32 [n, T]."""
        rows = indices if self._starts is None else self._starts[indices]
        return self._rows[rows].astype(np.int32)


def _document_starts(offsets: np.ndarray, T: int) -> np.ndarray:
    """Position of every full window, document by document; each document ends in a separator."""
    lengths = np.diff(offsets) - 1
    counts = lengths // T
    first = np.cumsum(counts) - counts
    within = np.arange(counts.sum()) - np.repeat(first, counts)
    return np.repeat(offsets[:-1], counts) + within * T
