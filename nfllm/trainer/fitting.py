"""Parameters of one model, fitted to another one by their names.

Parameters are matched by their path in the tree. Those that the two models do not share must be
listed in `training.init_skip`, by a path or its prefix, such as `blocks.attention_norm` or
`token_embedding`; `layers` stands for layers that only one of the two has. Three differences need
not be listed: learned positions of another context length; rows of the source's embedding beyond
its tokenizer's vocabulary; and, with a removal schedule, statistics, which are measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from nfllm.config import ConfigError, suggest
from nfllm.model.layers import ATTENTION_BLOCKS, BLOCKS

Arrays = dict[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]

LAYERS = "layers"
TABLES = ("token_embedding", "head_embedding", "head_bias")
"""Parameters that have a row for each token."""


class Fitted(NamedTuple):
    """The source's parameters, fitted to this model, and notes on how they were changed."""

    values: Arrays
    notes: tuple[str, ...]


def fit_parameters(
    source_values: Arrays,
    shapes: Shapes,
    skip: tuple[str, ...],
    *,
    source: str,
    measured: frozenset[str] = frozenset(),
    cut_tables: bool = False,
) -> Fitted:
    """The parameters of a source, fitted to a model of other shapes.

    Args:
      source_values: the source's parameters by name.
      shapes: the shapes of this model's parameters by name.
      skip: names, or their prefixes, of parameters that keep their initial values or are left out.
      source: name of the source in messages.
      measured: names of parameters that need no value, since they are measured.
      cut_tables: whether embedding rows beyond this vocabulary are padding, and may be cut.

    Returns:
      Values for some of the names; a value with fewer layers is for the first ones.

    Raises:
      ConfigError: parameters are new, missing or of another shape, and not in `skip`; the message
        lists all of them.
    """
    theirs = {n: x for n, x in source_values.items() if not n.startswith("objective.")}
    ours = {n: shape for n, shape in shapes.items() if not n.startswith("objective.")}
    _check_names(skip, {*theirs, *ours})
    new = [name for name in ours if name not in theirs and name not in measured]
    values: Arrays = {}
    other_shape, notes, layers = [], [], set()
    for name, shape in ours.items():
        if name not in theirs or is_named(name, skip):
            continue
        value = theirs[name]
        if value.shape == shape:
            values[name] = value
        elif name == "position_embedding" and value.shape[1:] == shape[1:]:
            values[name], note = resize_positions(value, shape[0])
            notes.append(note)
        elif cut_tables and _is_padded(name, value, shape):
            values[name] = value[: shape[0]]
            notes.append(f"{name}: {len(value) - shape[0]} padding rows are left out")
        elif _is_of_layers(name) and value.shape[1:] == shape[1:]:
            layers.add((len(value), shape[0]))
            values[name] = value[: shape[0]]
        else:
            other_shape.append(f"{name} {list(value.shape)} there, {list(shape)} here")
    missing = [name for name in theirs if name not in ours]
    problems = {
        "new here": [name for name in new if not is_named(name, skip)],
        "only there": [name for name in missing if not is_named(name, skip)],
        "of another shape": sorted(other_shape),
    }
    if layers and LAYERS not in skip:
        counts = ", ".join(f"{there} there, {here} here" for there, here in sorted(layers))
        problems["of another number of layers"] = [f"{LAYERS}: {counts}"]
    if any(problems.values()):
        raise ConfigError(_refusal(source, problems, skip))
    notes += [f"layers {min(a, b)} to {max(a, b) - 1} are {_fate(a, b)}" for a, b in layers]
    skipped = sorted(n for n in {*ours, *theirs} if is_named(n, skip))
    notes += [f"not copied: {', '.join(skipped)}"] if skipped else []
    return Fitted(values, tuple(notes))


def resize_positions(positions_TD: np.ndarray, length: int) -> tuple[np.ndarray, str]:
    """Learned positions for another context length: the first ones, or linearly interpolated.

    Position t of a longer context is interpolated at t (T - 1) / (length - 1) of the T given ones,
    so that the first and the last are unchanged.
    """
    count = len(positions_TD)
    if length <= count:
        return positions_TD[:length], f"positions: cut from {count} to {length}"
    at_T = np.linspace(0.0, count - 1.0, length)
    low_T = np.minimum(at_T.astype(np.int64), max(count - 2, 0))
    share_T1 = (at_T - low_T)[:, None]
    high_T = np.minimum(low_T + 1, count - 1)
    resized = (1.0 - share_T1) * positions_TD[low_T] + share_T1 * positions_TD[high_T]
    return (
        resized.astype(positions_TD.dtype),
        f"positions: interpolated from {count} to {length}",
    )


def _refusal(source: str, problems: Mapping[str, list[str]], skip: tuple[str, ...]) -> str:
    listed = "; ".join(f"{what}: {', '.join(names)}" for what, names in problems.items() if names)
    names = [name.split()[0].rstrip(":") for found in problems.values() for name in found]
    wanted = ",".join(dict.fromkeys([*skip, *names]))
    return (
        f"training.init_from={source} does not fit this model: {listed}. Either set "
        f"training.init_skip={wanted} to initialize these or leave them out (a prefix covers all "
        "names that begin with it), or change the model's keys"
    )


def _fate(there: int, here: int) -> str:
    return "left out" if there > here else "new"


def _is_padded(name: str, value: np.ndarray, shape: tuple[int, ...]) -> bool:
    return name in TABLES and value.shape[1:] == shape[1:] and len(value) > shape[0]


def _is_of_layers(name: str) -> bool:
    return name.split(".")[0] in (BLOCKS, ATTENTION_BLOCKS)


def is_named(name: str, skip: tuple[str, ...]) -> bool:
    """Whether `skip` lists the parameter, by its path or a prefix of it."""
    return any(name == part or name.startswith(f"{part}.") for part in skip)


def _check_names(skip: tuple[str, ...], known: set[str]) -> None:
    for part in skip:
        if part != LAYERS and not any(is_named(name, (part,)) for name in known):
            raise ConfigError(
                f"training.init_skip names {part!r}, which is not a parameter of either model; "
                f"{suggest(part, {*known, LAYERS})}"
            )
