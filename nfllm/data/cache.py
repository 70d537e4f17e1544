"""Directories that are complete or absent: a manifest, written last, marks one as complete."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import logging
from etils import epath

MANIFEST = "manifest.json"
_CHUNK = 1 << 24
_FULL = os.strerror(errno.ENOSPC)


def read_manifest(directory: epath.Path) -> dict[str, Any] | None:
    """The manifest of a complete, undamaged directory; None if there is no such directory.

    For a directory that does not match its manifest there is a warning, and it counts as absent.
    """
    path = directory / MANIFEST
    if not path.is_file():
        return None
    try:
        stored = json.loads(path.read_text())
        manifest = stored["manifest"]
        intact = stored["sha256"] == _digest(manifest)
    except (ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        logging.warning("%s is damaged: the directory is prepared again", path)
        return None
    for name, entry in manifest["files"].items():
        found = _describe(directory / name) if (directory / name).is_file() else "missing"
        if found != entry:
            logging.warning(
                "%s does not match %s (expected %s, found %s): the directory is prepared again",
                directory / name, MANIFEST, entry, found,
            )  # fmt: skip
            return None
    return manifest


@contextlib.contextmanager
def staged(directory: epath.Path) -> Iterator[Path]:
    """A new local directory that becomes `directory` when the block ends without an error.

    If another process was faster, its directory is kept and the one of this process is removed.
    """
    remote = "://" in os.fspath(directory)
    if not remote:
        directory.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp()) if remote else _sibling(Path(directory))
    try:
        yield staging
        if remote:
            _upload(staging, directory)
        else:
            _rename(staging, Path(directory))
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextlib.contextmanager
def explain_full_disk(directory: epath.Path) -> Iterator[None]:
    """Turns any error of a full disk into an OSError that names the directory and a remedy."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # array_record reports a full disk as a RuntimeError.
        if getattr(error, "errno", None) != errno.ENOSPC and _FULL not in str(error):
            raise
        raise OSError(
            errno.ENOSPC,
            f"{_FULL} under {os.fspath(directory)} to prepare the corpus (text, then tokens); "
            "incomplete files have been removed; free some space, or set data.data_dir",
        ) from error


def write_manifest(staging: Path, manifest: dict[str, Any]) -> None:
    """Adds the manifest to `staging`: `manifest` and the sizes and hashes of all files."""
    files = {path.name: _describe(epath.Path(path)) for path in sorted(staging.iterdir())}
    manifest = {"files": files, **manifest}
    stored = {"manifest": manifest, "sha256": _digest(manifest)}
    (staging / MANIFEST).write_text(json.dumps(stored, indent=2) + "\n")


def _digest(manifest: Any) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _describe(path: epath.Path) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _sibling(directory: Path) -> Path:
    """A new directory beside `directory`; other users may read it, unlike those of mkdtemp."""
    sibling = directory.with_name(f".{directory.name}.{uuid.uuid4().hex}")
    sibling.mkdir()
    return sibling


def _rename(staging: Path, directory: Path) -> None:
    for _ in range(3):
        try:
            staging.rename(directory)
            return
        except OSError:
            if read_manifest(epath.Path(directory)) is not None:
                return
            with contextlib.suppress(FileNotFoundError):
                stale = _sibling(directory)
                directory.rename(stale / "stale")
                shutil.rmtree(stale)
    raise OSError(f"{directory} could not be replaced; remove it and start again")


def _upload(staging: Path, directory: epath.Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    names = sorted(path.name for path in staging.iterdir() if path.name != MANIFEST)
    for name in [*names, MANIFEST]:
        (directory / name).write_bytes((staging / name).read_bytes())
