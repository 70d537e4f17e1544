"""The flag --config of the commands, with an unknown key as an error that names the nearest one."""

from __future__ import annotations

import runpy
import sys
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from absl import app
from ml_collections import config_flags

from nfllm.config import Config, ConfigError, suggest

_DEFAULT = Path(__file__).parents[1] / "configs" / "default.py"
_PREFIX = "config."


def define_config() -> Any:
    """Defines --config FILE and --config.SECTION.KEY=VALUE; its value is a ConfigDict."""
    if not _DEFAULT.exists():
        sys.exit(
            f"error: {_DEFAULT} is missing, since configs/ is not part of the installed package; "
            "clone the repository, and install it by `pip install -e .`"
        )
    # Defining the flag applies the changes; an unknown key would then end in a traceback.
    fault = unknown_key(sys.argv[1:]) or unusable_file(sys.argv[1:])
    if fault:
        sys.exit(f"error: {fault}")
    return config_flags.DEFINE_config_file(
        "config",
        str(_DEFAULT),
        "The configuration file; --config.SECTION.KEY=VALUE changes one of its keys.",
    )


def unknown_key(arguments: Iterable[str]) -> str | None:
    """What is wrong with the first `--config.SECTION.KEY` that no config has; None if all exist."""
    sections = typing.get_type_hints(Config)
    for argument in arguments:
        flag = argument.lstrip("-").partition("=")[0]
        if not argument.startswith("-") or not flag.startswith(_PREFIX):
            continue
        section, _, key = flag.removeprefix(_PREFIX).partition(".")
        if section not in sections:
            return f"unknown section {section!r} in --{flag}; {suggest(section, sections)}"
        keys = typing.get_type_hints(sections[section])
        if key not in keys:
            return f"unknown key {key!r} in --{flag}; {suggest(key, keys)}"
    return None


def unusable_file(arguments: Sequence[str]) -> str | None:
    """What is wrong with the file of the last `--config FILE[:ARGUMENT]`; None if nothing is."""
    value = None
    for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
        flag, separator, text = argument.partition("=")
        if flag in ("--config", "-config"):
            value = text if separator else following
    if value is None:
        return None
    path, separator, choice = value.partition(":")
    if not Path(path).is_file():
        return f"--config {path} does not exist; give a file such as configs/default.py"
    try:
        runpy.run_path(path)["get_config"](*([choice] if separator else []))
    except ConfigError as error:
        return f"--config {value}: {error}"
    return None


def check_no_arguments(arguments: list[str]) -> None:
    """Raises UsageError for an argument that is not an option."""
    if len(arguments) > 1:
        raise app.UsageError(f"unexpected argument {arguments[1]!r}; options begin with --")
