"""The start of a run from the weights of another: `training.init_from=RUN` or `RUN@STEP`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Set

import jax
import numpy as np
from etils import epath

from nfllm.config import Config, ConfigError, differences
from nfllm.data.tokenizer import Tokenizer
from nfllm.model.frozen_norm import GATE
from nfllm.model.parameters import Kind, Params, Path, kind_of, name_of
from nfllm.rundir import TOKENIZER_FILE, Origin, read_record, run_directory
from nfllm.trainer.checkpoint_files import named_checksums
from nfllm.trainer.checkpoints import restore_params
from nfllm.trainer.fitting import TABLES, Arrays, fit_parameters, is_named
from nfllm.trainer.program import Program
from nfllm.training.kernel_starts import following_kernels, start_from_kernels
from nfllm.training.state import TrainState


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
    copied = {n for n in shapes.keys() & theirs.keys() if not is_named(n, skip)}
    same = _same_tokenizer(path, program.dataset.tokenizer, copied.intersection(TABLES))
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


def _names(listed: str) -> tuple[str, ...]:
    return tuple(filter(None, (name.strip() for name in listed.split(","))))


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
