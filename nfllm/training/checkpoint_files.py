"""What is in a checkpoint of Orbax, how it is read, and how damage is noticed.

A checkpoint holds the state and beside it a small JSON, the notes: what the data was, and a
checksum of every array.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from nfllm.rundir import RunError, resolve

FORMAT_VERSION = 1

STATE = "state"
NOTES = "notes"
STEP_PREFIX = "step"


def open_reader(
    directory: epath.Path, handler: Callable[..., ocp.CheckpointHandler]
) -> ocp.CheckpointManager:
    """Reads without a word to other processes: one that fails leaves none of them waiting."""
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


def read_notes(manager: ocp.CheckpointManager, step: int) -> Mapping[str, Any]:
    """The notes of a checkpoint; whatever Orbax raises, or ValueError, where they are damaged."""
    arguments = ocp.args.Composite(**{NOTES: ocp.args.JsonRestore()})
    notes = manager.restore(step, args=arguments)[NOTES]
    if not isinstance(notes, dict) or "format_version" not in notes:
        raise ValueError("its notes are empty")
    return notes


def read_params(manager: ocp.CheckpointManager, step: int) -> Any:
    """The parameters alone, as numpy arrays, wherever they lay when they were saved."""
    saved = manager.item_metadata(step)[STATE].tree["params"]
    target = {"params": jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), saved)}
    arguments = ocp.args.PyTreeRestore(
        target,
        restore_args=ocp.checkpoint_utils.construct_restore_args(target),
        partial_restore=True,
    )
    return manager.restore(step, args=ocp.args.Composite(**{STATE: arguments}))[STATE]["params"]


@jax.jit
def _checksums(tree: Any) -> Any:
    """A 32-bit sum over each array's bits, mixed with their position: exact in any order."""

    def checksum(x: jax.Array) -> jax.Array:
        words = jax.lax.bitcast_convert_type(x, jnp.uint32).reshape(-1)
        place = jax.lax.iota(jnp.uint32, words.size)
        mixed = (words ^ (place * jnp.uint32(2654435761))) * jnp.uint32(2246822519)
        return jnp.sum(mixed ^ (mixed >> 15), dtype=jnp.uint32)

    return jax.tree.map(checksum, tree)


def named_checksums(tree: Any, prefix: str = "") -> dict[str, int]:
    """The checksum of each array by its name: `prefix`, then the path in the tree."""
    leaves = jax.tree_util.tree_leaves_with_path(_checksums(tree))
    return {prefix + jax.tree_util.keystr(path): int(value) for path, value in leaves}


def check_sums(actual: Mapping[str, int], notes: Mapping[str, Any]) -> None:
    """Raises ValueError unless each checksum is the one that was noted."""
    wrong = [name for name, value in actual.items() if notes["checksums"].get(name) != value]
    if wrong:
        raise ValueError(f"the checksum of {wrong[0]} does not match")


def check_format(directory: epath.Path, step: int, notes: Mapping[str, Any]) -> None:
    """Raises RunError for a checkpoint of a later format."""
    if notes["format_version"] > FORMAT_VERSION:
        raise RunError(
            f"the checkpoint of step {step} in {directory} has format_version "
            f"{notes['format_version']}; this nfllm reads up to {FORMAT_VERSION}, so use the newer "
            "one that wrote it"
        )


def describe_damage(step: int, error: Exception) -> str:
    """Why a checkpoint is passed over, in words."""
    return f"checkpoint of step {step} is damaged ({reason(error)})"


def reason(error: BaseException) -> str:
    """The first cause in one line: where it stands and, at the end, what went wrong."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 240 else f"{text[:80]} ... {text[-155:]}"
