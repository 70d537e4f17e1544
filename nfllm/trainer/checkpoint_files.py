"""The files of a checkpoint: how they are written, read and checked for damage.

A checkpoint has two parts: the state, and a small JSON file, the notes, with the data's
fingerprint, a checksum of every array, and one of the notes themselves. The state's folder also
lists its files with their sizes and checksums. These are checked before Orbax reads any file: when
one of its reads fails, it abandons the others and may wait forever.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from nfllm.config.paths import is_local, status
from nfllm.model.parameters import Params
from nfllm.rundir import RunError, resolve

FORMAT_VERSION = 1

STATE = "state"
NOTES = "notes"
STEP_PREFIX = "step"

_FILE_LIST = "files.json"
_OF_NOTES = "notes_crc32"
_CHUNK = 1 << 24

Tree = TypeVar("Tree")


class _ListedState(ocp.StandardCheckpointHandler):
    """Writes the list of files last, before the checkpoint is renamed to its final name."""

    def finalize(self, directory: epath.Path) -> None:
        """Called by Orbax in one process, after all processes have written their files."""
        with _without_glob_characters(directory) as plain:
            super().finalize(plain)
        found = {name: _describe(directory / name) for name in sorted(_names(directory))}
        (directory / _FILE_LIST).write_text(json.dumps(found, indent=1) + "\n")

    @classmethod
    def typestr(cls) -> str:
        """Names Orbax's own handler, so that plain Orbax can read the checkpoint."""
        return ocp.StandardCheckpointHandler.typestr()


@contextlib.contextmanager
def _without_glob_characters(directory: epath.Path) -> Iterator[epath.Path]:
    """The directory, or a link to it if its name contains [, * or ?.

    Orbax takes such a name for a glob pattern, finds no file to merge, and only warns.
    """
    name = os.fspath(directory)
    if glob.escape(name) == name or not is_local(directory):
        yield directory
        return
    with tempfile.TemporaryDirectory() as folder:
        link = os.path.join(folder, STATE)
        os.symlink(os.path.abspath(name), link, target_is_directory=True)
        yield epath.Path(link)


def writers() -> ocp.handlers.CheckpointHandlerRegistry:
    """The handlers that write the two parts of a checkpoint."""
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    registry.add(STATE, ocp.args.StandardSave, _ListedState())
    registry.add(NOTES, ocp.args.JsonSave, ocp.JsonCheckpointHandler())
    return registry


def check_files(checkpoints: epath.Path, step: int, share: int = 0, shares: int = 1) -> None:
    """Raises ValueError unless the files of the state are those that were saved.

    The sizes of all files are compared. The contents are divided among `shares` processes: only
    every file number `share` modulo `shares` is compared. A checkpoint of an early version, without
    a list of files, passes.
    """
    directory = checkpoints / f"{STEP_PREFIX}_{step}" / STATE
    path = directory / _FILE_LIST
    if not path.exists():
        return
    files = json.loads(path.read_text())
    for number, (name, noted) in enumerate(files.items()):
        file = directory / name
        if not file.exists():
            raise ValueError(f"{name} is missing")
        if (size := status(file).length) != noted["bytes"]:
            raise ValueError(f"{name} has {size} bytes instead of {noted['bytes']}")
        if number % shares == share and "crc32" in noted and _crc32(file) != noted["crc32"]:
            raise ValueError(f"{name} has changed since it was written")


def _names(directory: epath.Path, prefix: str = "") -> Iterator[str]:
    for path in directory.iterdir():
        if path.is_dir():
            yield from _names(path, f"{prefix}{path.name}/")
        else:
            yield prefix + path.name


def _describe(file: epath.Path) -> dict[str, int]:
    """Size, and on a file system the checksum; object storage has its own and is slow to read."""
    sums = {"crc32": _crc32(file)} if is_local(file) else {}
    return {"bytes": status(file).length, **sums}


def _crc32(file: epath.Path) -> int:
    total = 0
    with file.open("rb") as content:
        while chunk := content.read(_CHUNK):
            total = zlib.crc32(chunk, total)
    return total


def open_reader(
    directory: epath.Path, handler: Callable[..., ocp.CheckpointHandler]
) -> ocp.CheckpointManager:
    """A manager that reads without synchronizing: no process waits for one that failed."""
    this = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=this, active_processes={this}, barrier_sync_key_prefix=f"reader_{this}"
    )
    return ocp.CheckpointManager(
        resolve(directory),
        options=ocp.CheckpointManagerOptions(
            step_prefix=STEP_PREFIX, create=False, multiprocessing_options=alone
        ),
        item_handlers={
            STATE: handler(multiprocessing_options=alone),
            NOTES: ocp.JsonCheckpointHandler(multiprocessing_options=alone),
        },
    )


def with_checksum(notes: Mapping[str, Any]) -> dict[str, Any]:
    """The notes to be written: with a checksum, by which `read_notes` sees damage."""
    return {**notes, _OF_NOTES: _crc32_of_notes(notes)}


def _crc32_of_notes(notes: Mapping[str, Any]) -> int:
    others = {name: value for name, value in notes.items() if name != _OF_NOTES}
    return zlib.crc32(json.dumps(others, sort_keys=True).encode())


def read_notes(manager: ocp.CheckpointManager, step: int) -> Mapping[str, Any]:
    """The notes of a checkpoint; raises ValueError, or an error of Orbax, if they are damaged."""
    arguments = ocp.args.Composite(**{NOTES: ocp.args.JsonRestore()})
    notes = manager.restore(step, args=arguments)[NOTES]
    if not isinstance(notes, dict) or "format_version" not in notes:
        raise ValueError("its notes are empty")
    # Before anything in them is believed. Those of an early version have no checksum.
    if notes.get(_OF_NOTES, found := _crc32_of_notes(notes)) != found:
        raise ValueError("its notes have changed since they were written")
    return notes


def read_params(manager: ocp.CheckpointManager, step: int) -> Params:
    """Only the parameters, as NumPy arrays, whatever devices they were saved from."""
    saved = manager.item_metadata(step)[STATE].tree["params"]
    target = {"params": jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), saved)}
    arguments = ocp.args.PyTreeRestore(
        target,
        restore_args=ocp.checkpoint_utils.construct_restore_args(target),
        partial_restore=True,
    )
    return manager.restore(step, args=ocp.args.Composite(**{STATE: arguments}))[STATE]["params"]


@jax.jit
def _checksums(tree: Tree) -> Tree:
    """A 32-bit checksum of each array's bits and their positions, which any sharding computes."""

    def checksum(x: jax.Array) -> jax.Array:
        words = jax.lax.bitcast_convert_type(x, jnp.uint32).reshape(-1)
        place = jax.lax.iota(jnp.uint32, words.size)
        mixed = (words ^ (place * jnp.uint32(2654435761))) * jnp.uint32(2246822519)
        return jnp.sum(mixed ^ (mixed >> 15), dtype=jnp.uint32)

    return jax.tree.map(checksum, tree)


def named_checksums(tree: object, prefix: str = "") -> dict[str, int]:
    """The checksum of each array by name: `prefix` followed by the path in the tree."""
    leaves = jax.tree_util.tree_leaves_with_path(_checksums(tree))
    return {prefix + jax.tree_util.keystr(path): int(value) for path, value in leaves}


def check_sums(actual: Mapping[str, int], notes: Mapping[str, Any]) -> None:
    """Raises ValueError unless each checksum is the one in the notes."""
    wrong = [name for name, value in actual.items() if notes["checksums"].get(name) != value]
    if wrong:
        raise ValueError(f"the checksum of {wrong[0]} does not match")


def check_format(directory: epath.Path, step: int, notes: Mapping[str, Any]) -> None:
    """Raises RunError for a checkpoint of a later format."""
    if notes["format_version"] > FORMAT_VERSION:
        raise RunError(
            f"the checkpoint of step {step} in {directory} has format_version "
            f"{notes['format_version']}; this nfllm reads up to {FORMAT_VERSION}, so use the newer "
            "version that wrote it"
        )


def describe_damage(step: int, why: str) -> str:
    """The message for a checkpoint that is skipped as damaged."""
    return f"checkpoint of step {step} is damaged ({why})"


def reason(error: BaseException) -> str:
    """The original cause of an error in one line; long texts are shortened in the middle."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 240 else f"{text[:80]} ... {text[-155:]}"
