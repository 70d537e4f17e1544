"""Splitting texts into documents at a separator, and warnings about separators not configured."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

# Common end-of-document markers. Those of the second group also occur in HTML and in programs, and
# count only if they are alone on a line.
_ANYWHERE = ("<|endoftext|>", "<|end_of_text|>", "<|eos|>", "<|im_end|>", "<|eot_id|>")
_ON_A_LINE = ("</s>", "<eos>", "[SEP]")


class Markers:
    """Counts documents that contain a common end marker, which is read as ordinary characters."""

    def __init__(self) -> None:
        self._counts = dict.fromkeys((*_ANYWHERE, *_ON_A_LINE), 0)

    def add(self, text: str) -> None:
        """Counts the markers of a document."""
        for marker in _ANYWHERE:
            self._counts[marker] += marker in text
        for marker in _ON_A_LINE:
            if marker in text:
                line = rf"^[ \t]*{re.escape(marker)}[ \t\r]*$"
                self._counts[marker] += bool(re.search(line, text, re.MULTILINE))

    def summary(self) -> dict[str, int]:
        """Number of documents by marker, for the markers that occur."""
        return {marker: count for marker, count in self._counts.items() if count}


def remarks(card: dict[str, Any]) -> list[str]:
    """Warnings about the `Markers.summary` in a corpus card, for readers of the results."""
    total = card["documents"]["read"]
    return [
        f"{count:,} of {total:,} documents hold {marker!r} as ordinary characters; if it separates "
        + (
            f"documents, set data.document_separator={marker!r}"
            if card["dataset"] == "text_files"
            else "documents, split the texts there beforehand"
        )
        for marker, count in card["tokenizer"]["markers"].items()
    ]


def split(read: Callable[[int], bytes], separator: bytes, longest: int) -> Iterator[bytes | None]:
    """The parts of a stream between separators, without line breaks around them.

    A part longer than `longest` bytes is yielded as None. If only line breaks follow the last
    separator, they are not a part.
    """
    buffer, searched, too_long = bytearray(), 0, False
    while block := read(1 << 20):
        buffer += block
        while (end := buffer.find(separator, searched)) >= 0:
            yield None if too_long or end > longest else bytes(buffer[:end]).strip(b"\r\n")
            del buffer[: end + len(separator)]
            searched, too_long = 0, False
        searched = max(0, len(buffer) - len(separator) + 1)
        if len(buffer) > longest:
            del buffer[:searched]
            searched, too_long = 0, True
    if too_long:
        yield None
    elif rest := bytes(buffer).strip(b"\r\n"):
        yield rest
