"""How much of a corpus a tokenizer drops or maps to its unknown token, and warnings about it."""

from __future__ import annotations

from typing import Any

import numpy as np

from nfllm.data.tokenizer import Tokenizer

_SHOWN = 10


class Coverage:
    """Counts unknown tokens, and characters that have no token.

    A tokenizer with neither byte tokens nor an unknown token drops characters that are not in its
    vocabulary. One with an unknown token may map most of a text to it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._characters = np.zeros(0x110000, np.int64)
        self._tokens = self._unknown = 0

    def add(self, texts: list[str], ids: list[np.ndarray]) -> None:
        """Adds texts and the token ids that they were encoded to."""
        points = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32)
        counts = np.bincount(points)
        self._characters[: len(counts)] += counts
        self._tokens += sum(map(len, ids))
        if self._tokenizer.unknown_id is not None:
            unknown = self._tokenizer.unknown_id
            self._unknown += sum(int(np.count_nonzero(one == unknown)) for one in ids)

    def summary(self) -> dict[str, Any]:
        """The counts, and the most frequent lost characters other than white space."""
        present = [chr(point) for point in np.flatnonzero(self._characters)]
        lost = [char for char in present if not char.isspace() and self._tokenizer.loses(char)]
        lost.sort(key=lambda char: -self._characters[ord(char)])
        return {
            "characters": int(self._characters.sum()),
            "lost_characters": int(self._characters[[ord(char) for char in lost]].sum()),
            "lost_most": "".join(lost[:_SHOWN]),
            "tokens": self._tokens,
            "unknown_tokens": self._unknown,
        }


def remarks(coverage: dict[str, Any]) -> list[str]:
    """Warnings about a `Coverage.summary`, for readers of the results."""
    found = []
    if lost := coverage["lost_characters"]:
        found.append(
            f"the tokenizer has no token for {lost:,} of {coverage['characters']:,} characters, "
            f"which are lost: {coverage['lost_most']!r}"
        )
    if unknown := coverage["unknown_tokens"]:
        share = unknown / coverage["tokens"]
        found.append(
            f"{unknown:,} of {coverage['tokens']:,} tokens ({share:.1%}) are the tokenizer's "
            "unknown token" + ("; was it made for such text?" if share > 0.1 else "")
        )
    return found
