"""Finds files: below directories, and by names that may be globs."""

from __future__ import annotations

import fnmatch
import glob
import os
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

from nfllm.config import ConfigError

# In a source: where this interpreter's packages are installed, so that a config that names them is
# the same on every machine.
_SITE_PACKAGES = "{site-packages}"


def files_below(
    root: Path, wanted: Callable[[str], bool], exclude: tuple[str, ...] = ()
) -> list[Path]:
    """All files under `root` whose name is `wanted`, sorted, each once.

    Names that begin with a dot are skipped, since editors and notebooks keep copies there, and so
    are names that match a pattern of `exclude`. Links are followed; a directory or file that is
    reached a second time is skipped.

    Raises:
      ConfigError: the target of a link does not exist, for example data that was not downloaded.
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
            raise ConfigError(f"{path} is a link to {os.readlink(path)!r}, which does not exist")
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


def expand(sources: str, wanted: Callable[[Path], bool] | None = None) -> list[Path]:
    """Expands the paths and globs in `sources`; one that matches nothing is kept unchanged.

    With `wanted`, a source matches only those paths for which it is true.

    A name that exists is taken literally, even if it contains commas or glob characters. So is an
    existing directory at the start of a glob. `~` is the home directory, and `{site-packages}` that
    of the packages of the running interpreter.
    """
    whole = _named(sources.strip())
    if os.path.exists(whole):
        return [Path(whole)]
    paths: list[Path] = []
    for source in filter(None, map(str.strip, sources.split(","))):
        name = _named(source)
        found = glob.glob(_pattern(name), recursive=True)
        # Circular links give a file many names: the shortest is kept.
        unique = {os.path.realpath(path): path for path in sorted(found, key=len, reverse=True)}
        matches = [Path(path) for path in sorted(unique.values())]
        paths += [path for path in matches if wanted is None or wanted(path)] or [Path(name)]
    return paths


def _named(source: str) -> str:
    return os.path.expanduser(source).replace(_SITE_PACKAGES, sysconfig.get_path("purelib"))


def _pattern(source: str) -> str:
    """`source` as a glob in which the longest prefix that exists is escaped."""
    parts = Path(source).parts
    for count in range(len(parts), 0, -1):
        beginning = os.path.join(*parts[:count])
        if os.path.exists(beginning):
            return os.path.join(glob.escape(beginning), *parts[count:])
    return source
