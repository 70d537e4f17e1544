"""Records of a corpus: documents with their fields, and the policy for malformed ones."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from absl import logging

_SHOWN = 5


class Record(NamedTuple):
    """A document's text, and the other fields of its source as text."""

    text: str
    fields: dict[str, str]


class MalformedRecordError(ValueError):
    """A record that cannot be read as text; the message names the file and the position in it."""


class MalformedPolicy:
    """Raises on a malformed record, or skips and counts it.

    Attributes:
      skipped: number of records skipped so far.
      messages: the messages of the first few.
    """

    def __init__(self, policy: Literal["error", "skip"]) -> None:
        self._raises = policy == "error"
        self.skipped = 0
        self.messages: list[str] = []

    def report(self, message: str, records: int = 1) -> None:
        """Counts a malformed record, or several with one fault.

        Raises:
          MalformedRecordError: the policy is "error".
        """
        if self._raises:
            raise MalformedRecordError(
                f"{printable(message)} (data.malformed=skip leaves such records out)"
            )
        self.skipped += records
        if len(self.messages) < _SHOWN:
            self.messages.append(message)
            logging.warning("left out: %s", message)

    def decode(self, raw: bytes, where: str) -> str | None:
        """Text of UTF-8 bytes; None if they are not UTF-8 and the policy is "skip"."""
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            self.report(f"{where}: {not_utf8(error)}")
            return None

    def summary(self) -> dict[str, Any]:
        """The counts, for the corpus card."""
        return {"malformed": self.skipped, "malformed_messages": self.messages}


def not_utf8(error: UnicodeDecodeError) -> str:
    """What is wrong with bytes that are not UTF-8, and where in them."""
    return f"not UTF-8: byte 0x{error.object[error.start]:02x} at {error.start}"


def printable(text: str) -> str:
    """`text` with escapes for lone surrogates, which UTF-8 cannot encode.

    They come from JSON escapes, and from file names that are not UTF-8.
    """
    return text.encode("utf-8", "backslashreplace").decode()


def text_name(names: list[str], wanted: str | None) -> str | None:
    """The field that holds the text: `wanted`, by default `text` or `content`; None if missing."""
    choices = (wanted,) if wanted else ("text", "content")
    return next((name for name in choices if name in names), None)


def no_text(names: list[str], wanted: str | None) -> str:
    """Message about a record whose fields are `names`, none of which holds the text."""
    sought = repr(wanted) if wanted else "'text' or 'content'"
    found = ", ".join(map(repr, sorted(names))) or "none"
    return f"no field {sought}; its fields are {found}; set data.text_field to one of them"


def plain_fields(values: dict[str, Any], text_field: str) -> dict[str, str]:
    """All fields but the text that are a string or a number, as printable strings."""
    return {
        printable(name): printable(str(value))
        for name, value in values.items()
        if name != text_field and isinstance(value, (str, int, float))
    }
