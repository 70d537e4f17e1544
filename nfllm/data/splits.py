"""Assigns documents to training or validation, or leaves them out.

Documents are compared by a 128-bit digest of their text, so that about 30 bytes of memory are
needed for each document.
"""

from __future__ import annotations

import array
import dataclasses
import enum
import hashlib
import math
from fractions import Fraction
from typing import Any

import numpy as np

from nfllm.config import ConfigError, DataConfig, suggest

_DIGEST_BYTES = 16


class Side(enum.IntEnum):
    """What a document is used for: training, validation, or (empty or duplicate) nothing."""

    TRAIN = 0
    VALIDATION = 1
    EMPTY = 2
    DUPLICATE = 3


def digest(text: bytes) -> bytes:
    """Identity of a document: a 128-bit BLAKE2b hash of its UTF-8 text."""
    return hashlib.blake2b(text, digest_size=_DIGEST_BYTES).digest()


def uniform(key: bytes, purpose: str) -> float:
    """A number in [0, 1) determined by `key`; numbers for different purposes are independent."""
    word = hashlib.blake2b(key, digest_size=8, person=purpose.encode()).digest()
    return int.from_bytes(word, "big") / 2**64


class Survey:
    """The facts about every document that splitting needs, in the order of reading."""

    def __init__(self, config: DataConfig) -> None:
        self._config = config
        self._digests = bytearray()
        self._is_validation = bytearray()
        self._lengths = array.array("q")
        self._values: dict[str, int] = {}
        self._value_of = array.array("q")

    def add(self, text: bytes, fields: dict[str, str], *, validation: bool) -> None:
        """Adds one document; `validation`: it comes from the validation source."""
        identity = digest(text)
        self._digests += identity
        self._lengths.append(len(text))
        config = self._config
        if config.validation_split == "hash":
            validation = uniform(identity, "validation") < config.validation_fraction
        if config.validation_split == "field":
            value = _field_value(fields, config.validation_field)
            self._value_of.append(self._values.setdefault(value, len(self._values)))
        self._is_validation.append(validation)

    def assign(self) -> Assignment:
        """Assigns every document.

        Of equal documents only the first is kept; if any of them is a validation document, only
        the first validation document, so that no copy of it is trained on.

        Raises:
          ConfigError: a split would be empty, or a held-out value does not occur.
        """
        lengths = np.array(self._lengths, np.int64)
        held_out = self._held_out_values()
        validation = np.frombuffer(self._is_validation, np.bool_).copy()
        if self._config.validation_split == "field":
            codes = [self._values[value] for value in held_out]
            validation = np.isin(np.array(self._value_of, np.int64), codes)
        sides = validation.astype(np.int8)
        sides[lengths == 0] = Side.EMPTY
        sides[self._repeated(validation) & (lengths > 0)] = Side.DUPLICATE
        if self._config.validation_split == "slice":
            kept = np.flatnonzero(sides == Side.TRAIN)
            count = _share(len(kept), self._config.validation_fraction)
            sides[kept[len(kept) - count :]] = Side.VALIDATION
        self._check(sides)
        return Assignment(sides, lengths, bytes(self._digests), held_out)

    def _repeated(self, validation: np.ndarray) -> np.ndarray:
        order, same = _grouped(self._digests, ~validation)
        repeated = np.zeros(len(order), np.bool_)
        repeated[order[1:][same]] = True
        return repeated

    def _held_out_values(self) -> list[str]:
        config = self._config
        if config.validation_split != "field":
            return []
        named = [value.strip() for value in config.validation_values.split(",") if value.strip()]
        for value in named:
            if value not in self._values:
                raise ConfigError(
                    f"data.validation_values names {value!r}, but no document has it in the field "
                    f"{config.validation_field!r}; {suggest(value, self._values)}"
                )
        if named:
            return sorted(set(named))
        ranked = sorted(self._values, key=lambda value: uniform(value.encode(), "field"))
        return sorted(ranked[: _share(len(ranked), config.validation_fraction)])

    def _check(self, sides: np.ndarray) -> None:
        for side, name in ((Side.TRAIN, "training"), (Side.VALIDATION, "validation")):
            if not (sides == side).any():
                raise ConfigError(
                    f"no document is left for {name}: {len(sides)} were read, "
                    f"{(sides == Side.EMPTY).sum()} of them empty and "
                    f"{(sides == Side.DUPLICATE).sum()} exact duplicates; add documents, or "
                    f"{larger_split(self._config)}"
                )


def larger_split(config: DataConfig) -> str:
    """What to change for a split with too few documents, as the end of a sentence."""
    if config.validation_split == "separate":
        return (
            f"let data.validation_source={config.validation_source!r} name more documents, others "
            "than those of training"
        )
    return (
        f"change data.validation_fraction={config.validation_fraction} or "
        f"data.validation_split={config.validation_split!r}"
    )


@dataclasses.dataclass(frozen=True)
class Assignment:
    """The side of every document, in reading order.

    Attributes:
      sides: [documents] int8, values of `Side`.
      lengths: [documents] bytes of UTF-8.
      digests: 16 bytes per document.
      held_out: held-out values of the validation field; empty for other kinds of split.
    """

    sides: np.ndarray
    lengths: np.ndarray
    digests: bytes
    held_out: list[str]

    def digest(self, index: int) -> bytes:
        """Identity of document number `index`."""
        return self.digests[index * _DIGEST_BYTES : (index + 1) * _DIGEST_BYTES]

    def num_bytes(self, side: Side) -> int:
        """Bytes of text on one side."""
        return int(self.lengths[self.sides == side].sum())

    def shared_documents(self) -> int:
        """Number of texts that are on both sides; 0 after `Survey.assign`."""
        order, same = _grouped(self.digests, self.sides)
        sides = self.sides[order]
        return int((same & (sides[:-1] == Side.TRAIN) & (sides[1:] == Side.VALIDATION)).sum())

    def counts(self) -> dict[str, int]:
        """Number of documents that were read, and that were left out for each reason."""
        return {
            "read": len(self.sides),
            "empty": int((self.sides == Side.EMPTY).sum()),
            "duplicate": int((self.sides == Side.DUPLICATE).sum()),
        }


def _share(count: int, fraction: float) -> int:
    """`fraction` of `count`, rounded up; in decimals, since 0.07 * 100 exceeds 7 in binary."""
    return math.ceil(count * Fraction(str(fraction)))


def _grouped(digests: bytes | bytearray, rank: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An order that puts equal documents side by side, by rank and then by position.

    Returns:
      The order [n], and whether a document equals the one before it in that order [n - 1].
    """
    words = np.frombuffer(digests, np.uint64).reshape(-1, 2)
    order = np.lexsort((rank, words[:, 1], words[:, 0]))
    return order, (words[order[1:]] == words[order[:-1]]).all(axis=1)


def _field_value(fields: dict[str, str], name: Any) -> str:
    if name not in fields:
        raise ConfigError(
            f"a document has no field {name!r} (data.validation_field); "
            f"its fields are {', '.join(sorted(fields)) or 'none'}"
        )
    return fields[name]
