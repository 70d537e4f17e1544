"""Paths given by users, and the status of files on any storage."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import NamedTuple

from etils import epath

from nfllm.config.checks import ConfigError


class Status(NamedTuple):
    """Size in bytes, and times in seconds since 1970.

    They are those of the last change of the content, and, on a file system, of the last change of
    anything about the file, which a copy cannot set.
    """

    length: int
    mtime: float
    ctime: float | None


def is_local(path: epath.PathLike) -> bool:
    """Whether `path` is on a file system, where files can be appended to and renamed."""
    return "://" not in os.fspath(path)


def user_path(path: epath.PathLike, name: str) -> epath.Path:
    """The path that is the value of `name`, a key or a flag; a leading ~ is the home directory.

    Raises:
      ConfigError: the path is empty or has a NUL character, the home directory is not known, or
        the kind of storage is unknown or needs packages that are not installed.
    """
    text = os.fspath(path)
    if not text.strip():
        raise ConfigError(f"{name} is empty; give the path of a directory")
    if "\0" in text:
        raise ConfigError(f"{name}={text!r} has a NUL character, which no path may have")
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise ConfigError(
            f"{name}={text}: the home directory is not known; set HOME, or write the whole path "
            "(./~ for a directory of that name)"
        )
    if is_local(expanded):
        return epath.Path(expanded)
    try:
        epath.Path(expanded).exists()
    except ImportError as error:
        remedy = "pip install -e '.[gcs]'" if text.startswith("gs://") else str(error)
        raise ConfigError(f"{name}={text} needs a missing package: {remedy}") from error
    except KeyError as error:
        raise ConfigError(
            f"{name}={text}: unknown kind of storage; use gs://, or a local path"
        ) from error
    return epath.Path(expanded)


def local_path(path: epath.PathLike, name: str) -> Path:
    """As `user_path`, for a directory that must be on a file system.

    Raises:
      ConfigError: the directory is not on a file system, or `user_path` rejects the path.
    """
    found = user_path(path, name) if is_local(path) else None
    if found is None:
        raise ConfigError(
            f"{name}={os.fspath(path)} must be a local directory; download or upload its files "
            "yourself"
        )
    return Path(found)


def make_writable(directory: epath.Path, name: str) -> None:
    """Makes the directory that is the value of `name`, and sees that a file can be made in it.

    Raises:
      ConfigError: it cannot be made or written.
    """
    probe = directory / f".writable-{uuid.uuid4().hex}"  # several hosts try at the same time
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"{name}={directory} cannot be written ({error.strerror or error}); choose a directory "
            "that you may write to, with space on its disk"
        ) from error


def status(path: epath.Path) -> Status:
    """Size and time of a file.

    `epath` would also look up the owner's name, and fails if this machine does not know that user.
    """
    found = os.stat(path) if is_local(path) else None
    if found is not None:
        return Status(found.st_size, found.st_mtime, found.st_ctime)
    remote = path.stat()
    return Status(remote.length, remote.mtime, None)
