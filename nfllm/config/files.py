"""Python files that commands take, configs and grids: a user's own, or those that nfllm ships.

If the working directory has no file `configs/NAME.py`, that path means the shipped file. Shipped
files are in `configs/` of a checkout, and below `nfllm/shipped` of an installed wheel.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import re
import runpy
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from nfllm.config import ConfigError, get_config

_PACKAGE = Path(__file__).resolve().parents[1]
_IN_A_WHEEL = _PACKAGE / "shipped"

_before_devices = False


def shipped_folder() -> Path:
    """The folder that holds `configs`."""
    return _IN_A_WHEEL if _IN_A_WHEEL.is_dir() else _PACKAGE.parent


def find_file(path: str | Path) -> Path:
    """The file itself, or else the shipped one of that name. That path need not exist."""
    path = Path(path)
    if not path.is_file() and path.parts[:1] == ("configs",):
        return shipped_folder() / path
    return path


@contextlib.contextmanager
def before_devices() -> Iterator[None]:
    """Inside this context, registering a part uses no device; its checks wait for the first use.

    A config file runs before a command has chosen its devices.
    """
    global _before_devices
    outer, _before_devices = _before_devices, True
    try:
        yield
    finally:
        _before_devices = outer


def is_before_devices() -> bool:
    """Whether devices have not been chosen yet."""
    return _before_devices


def run_file(path: str | Path) -> dict[str, Any]:
    """Runs a file, and returns the names that it defines.

    The file may import the files beside it, as `NAME` or as `FOLDER.NAME`, and the shipped configs,
    from any working directory.
    """
    file = find_file(path).resolve()
    shipped = str(shipped_folder())
    if file.is_relative_to(shipped) and sys.path[0] != shipped:
        sys.path.insert(0, shipped)  # so that `configs` is the shipped folder
    for folder in (*map(str, file.parents[:2]), shipped):
        if folder not in sys.path:
            sys.path.append(folder)
    with before_devices():
        return runpy.run_path(str(file))


def fault_in(path: str | Path, error: Exception) -> str:
    """In one line: where a user's file raised `error`, and what is wrong.

    An error about a key of a config names the nearest key.
    """
    file = str(find_file(path).resolve())
    frames = traceback.extract_tb(error.__traceback__)
    at = [f"line {frame.lineno}: " for frame in frames if frame.filename == file][-1:]
    text = str(error).partition("\n")[0]
    if isinstance(error, ConfigError):
        return text
    unknown = re.match(r"'?\"?Key \"(\w+)\" does not exist", text)
    if unknown is None:
        return f"{''.join(at)}{type(error).__name__}: {text}"
    key, known = unknown[1], [f"{s}.{k}" for s, keys in get_config().items() for k in keys]
    near = difflib.get_close_matches(key, [name.partition(".")[2] for name in known], n=1)
    hints = [name for name in known if near and name.endswith(f".{near[0]}")]
    hint = f"; did you mean {' or '.join(hints)}?" if hints else ""
    return f"{''.join(at)}unknown key {key!r}{hint}"


def load_config(choice: str) -> ConfigDict:
    """The config of a file, given as FILE or FILE:ARGUMENT.

    Raises:
      ConfigError: there is no such file, or it does not make a config.

    Example:
      >>> load_config("configs/gpt2_codeparrot.py:sm+g").model.activation
      'gelu'
    """
    path, separator, argument = choice.partition(":")
    if not find_file(path).is_file():
        raise ConfigError(f"--config {path} does not exist; give a file such as configs/default.py")
    try:
        names = run_file(path)
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {choice} cannot be read as Python: {error}") from error
    except Exception as error:
        raise ConfigError(f"--config {choice}: {fault_in(path, error)}") from error
    if "get_config" not in names:
        remedy = (
            f"it is a grid of runs, for `python -m nfllm.experiment {path} --scale SCALE --out DIR`"
            if "get_experiment" in names
            else "give a file such as configs/default.py"
        )
        raise ConfigError(f"--config {path} has no function get_config(); {remedy}")
    arguments = [argument] if separator else []
    try:
        inspect.signature(names["get_config"]).bind(*arguments)
    except TypeError as error:
        given = repr(argument) if separator else "nothing"
        raise ConfigError(f"--config {choice} gives get_config() {given}: {error}") from error
    try:
        with before_devices():
            config = names["get_config"](*arguments)
    except Exception as error:
        raise ConfigError(f"--config {choice}: {fault_in(path, error)}") from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(
            f"--config {path}: get_config() returns {type(config).__name__}, expected a ConfigDict"
        )
    return config
