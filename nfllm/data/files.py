"""Finds files: below directories, and by names that may be globs."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from nfllm.config import ConfigError


def files_below(
    root: Path, wanted: Callable[[str], bool], exclude: tuple[str, ...] = ()
) -> list[Path]:
    """All files under `root` whose name is `wanted`, sorted, each once.

    Names that begin with a dot, where editors, notebooks and other systems keep copies, are
    skipped, and so are those that match a pattern of `exclude`. Links are followed; a directory or
    file that was reached before is skipped.

    Raises:
      ConfigError: a link leads to nothing, as to data that was not downloaded.
      OSError: a directory cannot be read.
    """
    patterns = (".*", *exclude)
    found: dict[str, Path] = {}
    for path in _walk(root, patterns, set()):
        if not wanted(path.name):
            continue
        if path.is_file():
            found.setdefault(os.path.realpath(path), path)
        elif path.is_symlink() and not path.exists():
            raise ConfigError(f"{path} is a link to {os.readlink(path)!r}, where there is nothing")
    return sorted(found.values())


def _walk(directory: Path, exclude: tuple[str, ...], seen: set[str]) -> Iterator[Path]:
    real = os.path.realpath(directory)
    if real in seen:
        return
    seen.add(real)
    with os.scandir(directory) as scanned:
        entries = sorted(scanned, key=lambda entry: (entry.is_symlink(), entry.name))
    for entry in entries:
        if any(fnmatch.fnmatchcase(entry.name, pattern) for pattern in exclude):
            continue
        if entry.is_dir():
            yield from _walk(Path(entry), exclude, seen)
        else:
            yield Path(entry)


def expand(sources: str) -> list[Path]:
    """Paths of the paths and globs in `sources`; one that matches nothing stays as it is.

    A name that exists is taken literally, even if it holds commas or characters of a glob, also
    where it is a directory in the middle of a glob.
    """
    whole = os.path.expanduser(sources.strip())
    if os.path.exists(whole):
        return [Path(whole)]
    paths: list[Path] = []
    for source in filter(None, map(str.strip, sources.split(","))):
        name = os.path.expanduser(source)
        found = glob.glob(_pattern(name), recursive=True)
        # Links in a circle give a file many names: the shortest is kept.
        unique = {os.path.realpath(path): path for path in sorted(found, key=len, reverse=True)}
        paths += map(Path, sorted(unique.values()) or [name])
    return paths


def _pattern(source: str) -> str:
    """`source` as a glob, with its longest existing beginning taken literally."""
    parts = Path(source).parts
    for count in range(len(parts), 0, -1):
        beginning = os.path.join(*parts[:count])
        if os.path.exists(beginning):
            return os.path.join(glob.escape(beginning), *parts[count:])
    return source
