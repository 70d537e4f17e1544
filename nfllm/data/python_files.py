"""Finds and reads Python source files."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from nfllm.config import ConfigError
from nfllm.data.files import files_below

# Left out of the standard library: not library source, or different from machine to machine.
_NOT_LIBRARY = (
    "site-packages",
    "dist-packages",
    "test*",
    "idle_test",
    "encodings",
    "pydoc_data",
    "config-*",
    "_sysconfigdata*",
    "sitecustomize*",
)


def standard_library() -> Path:
    """Directory of the running interpreter's own library."""
    return Path(sysconfig.get_path("stdlib"))


def python_files(
    root: Path, *, exclude: tuple[str, ...] = (), key: str = "data.sources"
) -> list[Path]:
    """All `.py` files under `root`, sorted; names that match `exclude` are left out.

    As in `files.files_below`, names that begin with a dot are skipped and links are followed.
    `key` is the one that names `root`, for errors.

    Raises:
      ConfigError: `root` is not a directory, or has no Python file.
    """
    if not root.is_dir():
        raise ConfigError(
            f"{key} names {root}, which is not a directory; name directories of Python files"
        )
    found = files_below(root, lambda name: name.endswith(".py"), ("__pycache__", *exclude))
    if not found:
        raise ConfigError(f"{key} names {root}, which has no Python file (*.py)")
    return found


def standard_library_files() -> list[Path]:
    """The Python files of the standard library that make up the corpus `python_stdlib`."""
    return python_files(standard_library(), exclude=_NOT_LIBRARY)
