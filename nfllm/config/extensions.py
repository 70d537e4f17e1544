"""Files of one's own that register parts, and how a command runs them."""

from __future__ import annotations

import argparse
import contextlib
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nfllm.config.checks import ConfigError

IMPORT_HELP = "a Python file that registers parts, such as the one that a run was trained with"

_before_devices = False


@contextlib.contextmanager
def before_devices() -> Iterator[None]:
    """Within it, what registers a part touches no device: checks that do wait for the first use.

    A config file runs before a command has said which devices there are.
    """
    global _before_devices
    outer, _before_devices = _before_devices, True
    try:
        yield
    finally:
        _before_devices = outer


def is_before_devices() -> bool:
    """Whether devices are still to be chosen."""
    return _before_devices


def import_file(path: str) -> None:
    """Runs a Python file for what it registers; it may import what stands beside it.

    Raises:
      ConfigError: there is no such file, or it cannot be run.
    """
    file = Path(path).expanduser().absolute()
    if not file.is_file():
        raise ConfigError(f"--import {path} does not exist; give a file that registers parts")
    find_beside(file)
    with before_devices():
        try:
            runpy.run_path(str(file))
        except ConfigError:
            raise
        except Exception as error:
            line = f"{type(error).__name__}: {error}"
            raise ConfigError(f"--import {path} cannot be run ({line})") from error


def find_beside(file: Path) -> None:
    """Lets a file import what stands beside it, and as `configs.NAME` what is in its folder.

    The configs of the checkout that this code runs from are found too.
    """
    for folder in (*file.resolve().parents[:2], Path(__file__).parents[2]):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))


class _Import(argparse.Action):
    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, path: Any, option: Any = None
    ) -> None:
        try:
            import_file(path)
        except ConfigError as error:
            parser.error(str(error))
        namespace.imports = [*namespace.imports, path]


def add_import_flag(parser: argparse.ArgumentParser) -> None:
    """Gives a command the flag --import FILE, which may be there several times."""
    parser.add_argument(
        "--import", metavar="FILE", dest="imports", default=[], action=_Import, help=IMPORT_HELP
    )
