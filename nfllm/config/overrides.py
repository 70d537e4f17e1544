"""Values of keys from a command line: --config.SECTION.KEY=VALUE."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from typing import Any

from nfllm.config.checks import ConfigError, Value, field_types, suggest, value_names, value_type
from nfllm.config.whole import Config

_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def key_type(name: str, where: str | None = None) -> Any:
    """The annotated type of the key `name`, written SECTION.KEY.

    Args:
      name: of the key.
      where: the place that names the key, for the error; None: a command line.

    Raises:
      ConfigError: there is no such key; the message names the nearest key.
    """
    section, _, key = name.partition(".")
    where = f"--config.{name}" if where is None else where
    sections = field_types(Config)
    if section not in sections:
        raise ConfigError(f"unknown section {section!r} in {where}; {suggest(section, sections)}")
    keys = field_types(sections[section])
    if key in keys:
        return keys[key]
    homes = [home for home, of in sections.items() if key in field_types(of)]
    hint = f"did you mean {homes[0]}.{key}?" if homes else suggest(key, keys)
    raise ConfigError(f"unknown key {key!r} in {where}; {hint}")


def override_value(name: str, text: str) -> Value:
    """`text` as a value of the key `name`: of the key's type, or None if the key may be None.

    Whole numbers may be written as 1e3. If the key has a name `none`, only `None` means None.
    `Config` checks the limits of the key.

    Raises:
      ConfigError: there is no such key, or `text` is not of its type.
    """
    hint = key_type(name)
    optional = types.NoneType in typing.get_args(hint)
    if optional and text.lower() == "none" and text not in value_names(hint):
        return None
    kind = value_type(hint)
    if kind is str:
        return text
    read, expected = _READERS[kind]
    try:
        return read(text)
    except (ValueError, KeyError, OverflowError) as error:
        or_none = " or None" if optional else ""
        raise ConfigError(f"--config.{name}={text} must be {expected}{or_none}") from error


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        number = float(text)
    if number != int(number):
        raise ValueError(text)
    return int(number)


_READERS: dict[type, tuple[Callable[[str], Value], str]] = {
    bool: (lambda text: _BOOLEANS[text.lower()], "true or false"),
    int: (_whole, "a whole number"),
    float: (float, "a number"),
}
