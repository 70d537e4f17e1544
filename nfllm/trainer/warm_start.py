"""The start of a run from the weights of another: `training.init_from=RUN` or `RUN@STEP`.

Parameters are matched by their path in the tree. Those that the two models do not share must be
listed in `training.init_skip`, by a path or its prefix, such as `blocks.attention_norm` or
`token_embedding`; `layers` stands for layers that only one of the two has. Three differences need
not be listed: learned positions of another context length; rows of the source's embedding beyond
its tokenizer's vocabulary; and, with a removal schedule, statistics, which are measured.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Set
from typing import NamedTuple

import jax
import numpy as np
from etils import epath

from nfllm.config import Config, ConfigError, differences, suggest
from nfllm.data.tokenizer import Tokenizer
from nfllm.model.frozen_norm import GATE
from nfllm.model.layers import ATTENTION_BLOCKS, BLOCKS
from nfllm.model.parameters import Kind, Params, Path, kind_of, name_of
from nfllm.rundir import TOKENIZER_FILE, Origin, read_record, run_directory
from nfllm.trainer.checkpoint_files import named_checksums
from nfllm.trainer.checkpoints import restore_params
from nfllm.trainer.program import Program
from nfllm.training.kernel_starts import following_kernels, start_from_kernels
from nfllm.training.state import TrainState

Arrays = dict[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]

LAYERS = "layers"
_TABLES = ("token_embedding", "head_embedding", "head_bias")  # a row for each token


class Fitted(NamedTuple):
    """The source's parameters, fitted to this model, and notes on how they were changed."""

    values: Arrays
    notes: tuple[str, ...]


def first_state(program: Program) -> tuple[TrainState, Origin | None]:
    """The state before the first step, and where its parameters come from.

    Raises:
      RunError: the source cannot be read.
      ConfigError: its parameters do not fit; raised before anything is compiled.
    """
    config = program.config
    if config.training.init_from is None:
        return program.init_state(), None
    path, step = split_source(config.training.init_from)
    record = read_record(path)
    step, params = restore_params(path, step)
    ours = _flat(program.abstract_state().params)
    shapes = {name: leaf.shape for name, leaf in ours.items()}
    skip = _names(config.training.init_skip)
    theirs = {name: np.asarray(value) for name, value in _flat(params).items()}
    copied = {n for n in shapes.keys() & theirs.keys() if not _is_named(n, skip)}
    same = _same_tokenizer(path, program.dataset.tokenizer, copied.intersection(_TABLES))
    measured: frozenset[str] = frozenset()
    if config.removal.start is not None:
        measured = _statistics(ours)
        theirs = {name: x for name, x in theirs.items() if name.rpartition(".")[2] != GATE}
    fitted = fit_parameters(
        theirs,
        shapes,
        skip,
        source=config.training.init_from,
        measured=measured,
        cut_tables=same,
    )
    notes = (*_other_keys(record.config, config), *fitted.notes)
    origin = Origin(str(path), step, fingerprint(params), notes)
    state = with_params(program.init_state(), fitted.values)
    if follows := following_kernels(ours, fitted.values):
        state = state.replace(params=start_from_kernels(program.model, state.params, follows))
    return state, origin


def check_source(config: Config) -> None:
    """Raises RunError if `training.init_from` names no run."""
    if config.training.init_from is not None:
        read_record(split_source(config.training.init_from)[0])


def with_params(state: TrainState, values: Arrays) -> TrainState:
    """The state with `values` in place of the parameters of their names, placed as these are.

    A name is the path in the tree, joined by dots. A value with fewer rows than the parameter
    takes the place of its first ones.
    """

    def put(path: Path, old: jax.Array) -> jax.Array:
        name = name_of(path)
        if name not in values:
            return old
        value = np.asarray(values[name], old.dtype)
        if value.shape == old.shape:
            return place(value, old.sharding)
        rows, whole = len(value), np.zeros(old.shape, old.dtype)
        whole[:rows] = value
        join = jax.jit(lambda x, old: x.at[rows:].set(old[rows:]), out_shardings=old.sharding)
        return join(place(whole, old.sharding), old)

    def place(value: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    return state.replace(params=jax.tree_util.tree_map_with_path(put, state.params))


def split_source(source: str) -> tuple[epath.Path, int | None]:
    """The run directory and the step of RUN or RUN@STEP; a directory of the whole name is a RUN."""
    path, separator, step = source.rpartition("@")
    if separator and step.isdecimal() and not run_directory(source).is_dir():
        return run_directory(path), int(step)
    return run_directory(source), None


def fingerprint(params: Params) -> str:
    """SHA-256 of the names and checksums of all parameters."""
    sums = named_checksums(params)
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()


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
    for name in ours.keys() & theirs.keys():
        value, shape = theirs[name], ours[name]
        if _is_named(name, skip):
            continue
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
        "new here": [name for name in new if not _is_named(name, skip)],
        "only there": [name for name in missing if not _is_named(name, skip)],
        "of another shape": sorted(other_shape),
    }
    if layers and LAYERS not in skip:
        counts = ", ".join(f"{there} there, {here} here" for there, here in sorted(layers))
        problems["of another number of layers"] = [f"{LAYERS}: {counts}"]
    if any(problems.values()):
        raise ConfigError(_refusal(source, problems, skip))
    notes += [f"layers {min(a, b)} to {max(a, b) - 1} are {_fate(a, b)}" for a, b in layers]
    skipped = sorted(n for n in {*ours, *theirs} if _is_named(n, skip))
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
    return name in _TABLES and value.shape[1:] == shape[1:] and len(value) > shape[0]


def _is_of_layers(name: str) -> bool:
    return name.split(".")[0] in (BLOCKS, ATTENTION_BLOCKS)


def _is_named(name: str, skip: tuple[str, ...]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in skip)


def _names(listed: str) -> tuple[str, ...]:
    return tuple(filter(None, (name.strip() for name in listed.split(","))))


def _check_names(skip: tuple[str, ...], known: set[str]) -> None:
    for part in skip:
        if part != LAYERS and not any(_is_named(name, (part,)) for name in known):
            raise ConfigError(
                f"training.init_skip names {part!r}, which is not a parameter of either model; "
                f"{suggest(part, {*known, LAYERS})}"
            )


def _statistics(leaves: Iterable[str]) -> frozenset[str]:
    def kind(name: str) -> Kind:
        return kind_of(tuple(jax.tree_util.DictKey(part) for part in name.split(".")))

    return frozenset(name for name in leaves if kind(name) is Kind.STATISTIC)


def _same_tokenizer(path: epath.Path, tokenizer: Tokenizer, tables: Set[str]) -> bool:
    """Whether the source has this tokenizer; False if that is unknown.

    Raises:
      ConfigError: it has another one, in which ids mean other tokens, and `tables` are copied.
    """
    file = path / TOKENIZER_FILE
    try:
        theirs = Tokenizer.load(file)
    except (OSError, ValueError):  # a checkpoint may be imported without a tokenizer
        return False
    if theirs.fingerprint != tokenizer.fingerprint and tables:
        raise ConfigError(
            f"training.init_from={path} has another tokenizer than this run's data, so its "
            f"embeddings are those of other tokens; set data.tokenizer={file}, or add "
            f"{', '.join(sorted(tables))} to training.init_skip"
        )
    return theirs.fingerprint == tokenizer.fingerprint


def _other_keys(theirs: Config, ours: Config) -> list[str]:
    changed = differences(theirs, ours)
    return [
        f"{key}: {old!r} there, {new!r} here"
        for key, (old, new) in changed.items()
        if key.startswith("model.")
    ]


def _flat(params: Params) -> dict[str, jax.Array]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {name_of(path): leaf for path, leaf in leaves}
