"""A document and its fields, and what happens to one that cannot be read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from absl import logging

_SHOWN = 5


class Record(NamedTuple):
    """A document's text and whatever else its source says about it, as text."""

    text: str
    fields: dict[str, str]


class MalformedRecordError(ValueError):
    """A record that is no text; the message names the file and the place in it."""


class MalformedPolicy:
    """Raises on a malformed record, or skips and counts it.

    Attributes:
      skipped: how many were skipped so far.
      messages: the first few of their messages.
    """

    def __init__(self, policy: Literal["error", "skip"]) -> None:
        self._raise = policy == "error"
        self.skipped = 0
        self.messages: list[str] = []

    def handle(self, message: str) -> None:
        """Call for every malformed record."""
        if self._raise:
            raise MalformedRecordError(f"{message} (data.malformed=skip leaves such records out)")
        self.skipped += 1
        if len(self.messages) < _SHOWN:
            self.messages.append(message)
            logging.warning("skipped: %s", message)

    def decode(self, raw: bytes, where: str) -> str | None:
        """Text of UTF-8, or None after a policy of skipping has counted what is no UTF-8."""
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            self.handle(f"{where}: not UTF-8: byte 0x{raw[error.start]:02x} at {error.start}")
            return None

    def summary(self) -> dict[str, Any]:
        """Counts for the corpus card."""
        return {"malformed": self.skipped, "malformed_messages": self.messages}


def text_fields(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The fields that are text or a plain number, as text."""
    for name, value in values.items():
        if isinstance(value, (str, int, float)):
            yield name, str(value)
