"""Files of a user that register parts, and how a command runs them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nfllm.config.checks import ConfigError
from nfllm.config.files import run_file

IMPORT_HELP = "a Python file that registers parts, such as the one that a run was trained with"


def import_file(path: str) -> None:
    """Runs a Python file that registers parts; it may import modules from its own folder.

    Raises:
      ConfigError: there is no such file, or it cannot be run.
    """
    file = Path(path).expanduser().absolute()
    if not file.is_file():
        raise ConfigError(f"--import {path} does not exist; give a file that registers parts")
    try:
        run_file(file)
    except ConfigError:
        raise
    except Exception as error:
        line = f"{type(error).__name__}: {error}"
        raise ConfigError(f"--import {path} cannot be run ({line})") from error


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
    """Gives a command the flag --import FILE, which may be given several times."""
    parser.add_argument(
        "--import", metavar="FILE", dest="imports", default=[], action=_Import, help=IMPORT_HELP
    )
