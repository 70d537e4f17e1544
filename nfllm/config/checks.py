"""Checks of a section of the configuration: its keys, its types and its limits."""

from __future__ import annotations

import difflib
import functools
import math
import struct
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from nfllm.config.names import Names

Value = bool | int | float | str | None
"""The value of a key of a config."""


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the key, the value and a remedy."""


def suggest(name: str, valid: Iterable[str]) -> str:
    """The end of an error about an unknown `name`: the nearest valid name, and all valid names.

    Initials count as near: `lr` suggests `learning_rate`. Capitals count as small letters.
    """
    valid = sorted(valid)
    initials = [full for full in valid if "".join(word[:1] for word in full.split("_")) == name]
    by_lower_case = {full.lower(): full for full in valid}
    close = difflib.get_close_matches(name.lower(), by_lower_case, n=1, cutoff=0.5)
    near = initials or [by_lower_case[word] for word in close]
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}choose from {', '.join(valid)}"


def field_types(section: type) -> Mapping[str, Any]:
    """The annotated type of each field, with the `Names` of those that name parts."""
    return _evaluated(section)


# Annotations are text: to evaluate them takes longer than to check the values. It is a function of
# its own because a cached one would accept only what type checkers know to be hashable.
@functools.cache
def _evaluated(section: type) -> Mapping[str, Any]:
    return types.MappingProxyType(typing.get_type_hints(section, include_extras=True))


def section_values(values: Any, section: type, name: str) -> dict[str, Value]:
    """The values of a section, with integers as floats if the key is a float.

    Raises:
      ConfigError: `values` is not a group of keys, or a key is unknown or missing.
    """
    if not isinstance(values, Mapping) and not hasattr(values, "items"):
        raise ConfigError(f"config.{name} must be a group of keys, not {values!r}")
    fields = field_types(section)
    check_keys(values, fields, name)
    return {
        key: _as_float(value) if _wants_float(fields[key]) and type(value) is int else value
        for key, value in values.items()
    }


def _as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def value_type(hint: Any) -> Any:
    """The type of a key's values other than None; `str` if they are names."""
    kind = next(option for option in _options(hint) if option is not types.NoneType)
    return kind if _choices(kind) is None else str


def value_names(hint: Any) -> tuple[str, ...]:
    """The names that a key can be set to; empty if its values are not names."""
    return tuple(name for option in _options(hint) for name in _choices(option) or ())


def _options(hint: Any) -> tuple[Any, ...]:
    """The members of a union; of any other type, itself."""
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return typing.get_args(hint) if is_union else (hint,)


def check_keys(values: Iterable[str], valid: Iterable[str], where: str) -> None:
    """Raises ConfigError unless `values` has exactly the keys `valid`."""
    valid = set(valid)
    for key in values:
        if key not in valid:
            raise ConfigError(f"unknown key {key!r} in {where}; {suggest(key, valid)}")
    missing = sorted(valid - set(values))
    if missing:
        raise ConfigError(
            f"{where} lacks the key {missing[0]!r}; start from configs/default.py, which "
            "has every key"
        )


def _wants_float(hint: object) -> bool:
    return hint is float or float in typing.get_args(hint)


def check_types(section: object, name: str) -> None:
    """Raises ConfigError unless every field of a section has its annotated type."""
    for key, hint in field_types(type(section)).items():
        value, options = getattr(section, key), _options(hint)
        if not any(_is_a(value, option) for option in options):
            raise ConfigError(_type_message(f"{name}.{key}", value, options))


def names_of(hint: Any) -> Names | None:
    """The `Names` of a key whose values name parts; None for any other key."""
    for option in _options(hint):
        if typing.get_origin(option) is Annotated:
            names: Names = option.__metadata__[0]
            return names
    return None


def _choices(hint: Any) -> Iterable[str] | None:
    """The names that a type allows; None if its values are not names."""
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)
    return names_of(hint)


def _is_a(value: Any, hint: Any) -> bool:
    choices = _choices(hint)
    if choices is not None:
        return isinstance(value, str) and value in choices
    if hint in (int, float):
        return type(value) is hint and (hint is int or _is_in_float32(value))
    return isinstance(value, hint)


def _is_in_float32(value: float) -> bool:
    """Whether float32 has a normal number for it; accelerators replace smaller ones by 0."""
    return value == 0 or 2.0**-126 <= abs(value) < 2.0**128 - 2.0**103  # which rounds to infinity


def _type_message(key: str, value: object, options: Iterable[object]) -> str:
    names = [name for option in options for name in _choices(option) or ()]
    if names and isinstance(value, str):
        word = key.rpartition(".")[2]
        return f"unknown {word} {value!r} (key {key}); {suggest(value, names)}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{key}={value} is not a finite number"
    if isinstance(value, float) and not _is_in_float32(value):
        return f"{key}={value} cannot be held in float32, from 1.2e-38 to 3.4e38, or 0"
    expected = " or ".join(_option_name(option) for option in options)
    return f"{key}={value!r} is of type {type(value).__name__}, expected {expected}"


def _option_name(option: Any) -> str:
    choices = _choices(option)
    if choices is not None:
        return f"one of {', '.join(sorted(choices))}"
    return "None" if option is types.NoneType else option.__name__


def at_least(section: object, name: str, key: str, low: float) -> None:
    """Raises ConfigError if a field is below `low`."""
    value = getattr(section, key)
    if value < low:
        raise ConfigError(f"{name}.{key}={value} must be at least {low}")


def positive(section: object, name: str, key: str) -> None:
    """Raises ConfigError if a field is not above 0."""
    value = getattr(section, key)
    if value <= 0:
        raise ConfigError(f"{name}.{key}={value} must be greater than 0")


def between(
    section: object, name: str, key: str, low: float, high: float, closed: bool = False
) -> None:
    """Raises ConfigError outside [low, high), or outside [low, high] if `closed`."""
    value = getattr(section, key)
    (rounded,) = struct.unpack("f", struct.pack("f", value))  # 0.99999999 is 1 in float32
    if not (low <= rounded < high or (closed and rounded == high)):
        bracket = "]" if closed else ")"
        raise ConfigError(f"{name}.{key}={value} is outside [{low}, {high}{bracket}")


def no_effect(
    section: object, name: str, unused: Mapping[str, object], beside: str, remedy: str
) -> None:
    """Raises ConfigError if a field that does nothing `beside` another key has a value of its own.

    Args:
      section: a section of the config.
      name: its name.
      unused: the fields that do nothing, each with the one value that it may have.
      beside: "with" or "without" and the other key, such as "with model.mlp='none'".
      remedy: what to do for them to have an effect.
    """
    for key, default in unused.items():
        if (value := getattr(section, key)) != default:
            raise ConfigError(
                f"{name}.{key}={value!r} has no effect {beside}; {remedy}, or set {name}.{key} to "
                f"{default!r}"
            )


def needs(section: object, name: str, needed: Mapping[str, object], beside: str) -> None:
    """Raises ConfigError if a field differs from the one value that works with `beside`.

    Args:
      section: a section of the config.
      name: its name.
      needed: the fields, each with that value.
      beside: another key with its value, and why.
    """
    for key, value in needed.items():
        if (found := getattr(section, key)) != value:
            raise ConfigError(
                f"{name}.{key}={found!r} does not work with {beside}; set {name}.{key} to {value!r}"
            )
