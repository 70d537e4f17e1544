"""Keys that runs of earlier versions lack, and the values that those runs used."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import EllipsisType
from typing import Any, TypeVar

T = TypeVar("T")

RETIRED = ("parallel.xla_flags",)
"""Keys of earlier versions that a record may still have; none had an effect on results."""


def added(default: T, *, before: T | EllipsisType = ...) -> T:
    """The default of a key that earlier runs do not have; they used the value `before`.

    `before` equals `default` unless given. If you change the default, pass the old one as `before`.
    """
    meant = default if before is ... else before
    field: T = dataclasses.field(default=default, metadata={"before": meant})
    return field


def values_before(section: type) -> dict[str, Any]:
    """By key of this section: the value in effect in a run whose record lacks the key."""
    fields = dataclasses.fields(section)
    return {f.name: f.metadata["before"] for f in fields if "before" in f.metadata}


def with_added_keys(values: Mapping[str, Any], sections: Mapping[str, type]) -> dict[str, Any]:
    """The recorded values of all sections, without retired keys and with missing keys added."""
    found = {
        name: {key: value for key, value in keys.items() if f"{name}.{key}" not in RETIRED}
        if isinstance(keys, Mapping)
        else keys
        for name, keys in values.items()
    }
    for name, section in sections.items():
        before = values_before(section)
        if len(before) == len(dataclasses.fields(section)):
            found.setdefault(name, {})
        if isinstance(keys := found.get(name), dict):
            found[name] = before | keys
    return found
