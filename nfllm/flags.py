"""The flag --config of the commands, and parsing of command lines with one-line errors."""

from __future__ import annotations

import sys
import typing
from collections.abc import Callable
from typing import NamedTuple

from absl import app, flags
from ml_collections import ConfigDict

from nfllm.config import ConfigError, get_config
from nfllm.config.checks import Value
from nfllm.config.extensions import IMPORT_HELP, import_file
from nfllm.config.files import load_config
from nfllm.config.overrides import key_type, override_value

_PREFIX = "config."
_HELP = {"help", "helpshort", "helpfull", "helpxml", "h", "?"}

flags.disclaim_key_flags()  # --help lists --config among the flags of the command


class ConfigFlag(NamedTuple):
    """The config of a command line."""

    value: ConfigDict


def define_config() -> ConfigFlag:
    """Defines --config FILE and --config.SECTION.KEY=VALUE, and reads them.

    An error in them ends the program with one line.
    """
    flags.DEFINE_string(
        "config",
        None,
        "The configuration file, as FILE or FILE:ARGUMENT; by default all keys have their "
        "defaults. --config.SECTION.KEY=VALUE changes a key; the VALUE None derives it from others "
        "where that is possible.",
    )
    flags.DEFINE_multi_string("import", [], IMPORT_HELP)
    try:
        for file in _values(sys.argv[1:], "import"):
            import_file(file)
        changes, sys.argv[1:] = split_overrides(sys.argv[1:])
        choice = next(reversed(_values(sys.argv[1:], "config")), None)
        config = get_config() if choice is None else load_config(choice)
    except ConfigError as error:
        sys.exit(f"error: {error}")
    with config.unlocked(), config.ignore_type():
        for name, value in changes.items():
            section, _, key = name.partition(".")
            if section in config:  # otherwise `Config` reports the missing section
                config[section][key] = value
    return ConfigFlag(config)


def run(main: Callable[[list[str]], object]) -> None:
    """`absl.app.run`, but --help exits with 0 and a wrong argument gives a one-line error."""
    wants_help = any(argument.lstrip("-") in _HELP for argument in sys.argv[1:])
    try:
        app.run(main, flags_parser=_parse)
    except SystemExit as end:
        sys.exit(0 if wants_help and end.code == 1 else end.code)


def _parse(arguments: list[str]) -> list[str]:
    try:
        return flags.FLAGS(arguments)
    except flags.Error as error:
        sys.exit(f"error: {error}; --help lists the flags")


def split_overrides(arguments: list[str]) -> tuple[dict[str, Value], list[str]]:
    """Changes as `{"section.key": value}`, and the other arguments.

    A boolean key needs no value (--config.SECTION.KEY or --noconfig.SECTION.KEY); the value of any
    other key may also be the next argument.

    Raises:
      ConfigError: a key does not exist, has no value, or has a value of another type.
    """
    changes: dict[str, Value] = {}
    others: list[str] = []
    left = iter(arguments)
    for argument in left:
        name, separator, text = argument.lstrip("-").partition("=")
        if argument == "--":
            return changes, [*others, argument, *left]
        if not argument.startswith("-") or not name.removeprefix("no").startswith(_PREFIX):
            others.append(argument)
            continue
        key = name.removeprefix("no").removeprefix(_PREFIX)
        negated = name.startswith("no")
        is_boolean = bool in (key_type(key), *typing.get_args(key_type(key)))
        if negated and (separator or not is_boolean):
            raise ConfigError(f"--{name} is not a flag; write --config.{key}=VALUE")
        if is_boolean and not separator:
            text = "false" if negated else "true"
        elif not separator:
            following = next(left, None)
            if following is None or following.startswith("--"):
                raise ConfigError(f"--{name} has no value; write --{name}=VALUE")
            text = following
        changes[key] = override_value(key, text)
    return changes, others


def check_no_arguments(arguments: list[str]) -> None:
    """Raises UsageError for an argument that is not an option."""
    if len(arguments) > 1:
        raise app.UsageError(f"unexpected argument {arguments[1]!r}; options begin with --")


def _values(arguments: list[str], name: str) -> list[str]:
    """The value of each --NAME."""
    values = []
    for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
        flag, separator, text = argument.partition("=")
        if flag in (f"--{name}", f"-{name}"):
            values.append(text if separator else following)
    return values
