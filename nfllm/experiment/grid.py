"""What an experiment consists of: groups of variants, each trained with several seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from nfllm.config import Config, ConfigError, suggest
from nfllm.config.checks import Value
from nfllm.config.files import before_devices, fault_in, find_file, run_file
from nfllm.config.overrides import key_type, override_value

if TYPE_CHECKING:
    from nfllm.experiment.measured import GroupResults
    from nfllm.report.page import Section
    from nfllm.report.reference import Reference


_SEED = "training.seed"


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row: changes to the group's config, as `{"section.key": value}`, and the seeds."""

    changes: Mapping[str, Value]
    seeds: Sequence[int] = (0,)

    def __post_init__(self) -> None:
        _expect(self, "changes", Mapping, "such as {'model.activation': 'gelu'}")
        for key, value in self.changes.items():
            if not isinstance(key, str) or isinstance(value, Mapping):
                raise ConfigError(
                    f"Variant: the change {key!r}: {value!r} must be a key and its value, such as "
                    "'model.activation': 'gelu'"
                )
        _expect(self, "seeds", Sequence, "such as (0, 1, 2)")
        if not self.seeds or not all(type(seed) is int for seed in self.seeds):
            raise ConfigError(f"Variant: seeds={self.seeds!r} must be integers, such as (0, 1, 2)")


@dataclasses.dataclass(frozen=True)
class Group:
    """Variants to be compared with each other, on one config.

    `title` is the heading of its tables.
    """

    title: str
    base: ConfigDict
    variants: Mapping[str, Variant]

    def __post_init__(self) -> None:
        _expect(self, "base", ConfigDict, "such as nfllm.config.get_config()")
        _expect_names(self, "variants", Variant)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Groups by name; `note` says what the scale is for, its hardware and its time.

    The first group is the main one: the figures show its runs. Runs start in the order of the
    groups. Within a group, the variants with the most seeds run first, all of them with one seed
    before the next seed, so that an interrupted experiment has complete comparisons.

    Attributes:
      note: the first lines of the page.
      groups: what is trained.
      sections: makes the sections of the page and RESULTS.md from the measured groups; by default
        `nfllm.experiment.sections.comparison_sections`, which works for any grid.
      reference: published numbers for the figures; None for none.
      linear_replacement: whether each run ends with the measurement of `nfllm.experiment.cause`.
    """

    note: str
    groups: Mapping[str, Group]
    sections: Callable[[Sequence[GroupResults]], Iterable[Section]] | None = None
    reference: Reference | None = None
    linear_replacement: bool = False

    def __post_init__(self) -> None:
        _expect_names(self, "groups", Group)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One run of the grid.

    `same_as` names an earlier entry of equal config, whose run is used for both. `changes` are the
    changes of its variant.
    """

    group: str
    variant: str
    seed: int
    config: Config
    same_as: str | None = None
    changes: Mapping[str, Value] = dataclasses.field(default_factory=dict)
    linear_replacement: bool = False

    @property
    def name(self) -> str:
        """Unique in the grid; the path of its run directory below the output directory."""
        return f"{self.group}/{self.variant}/seed{self.seed}"

    @property
    def tokens(self) -> int:
        """How many tokens the whole run trains on."""
        training = self.config.training
        return training.steps * training.batch_size * self.config.model.context_length


def load_experiment(path: Path, scale: str) -> Experiment:
    """`get_experiment(scale)` of the grid file at `path`.

    Raises:
      ConfigError: there is no such file, it is not a grid, or it has no such scale.
    """
    names = _run(path)
    get_experiment, scales = names.get("get_experiment"), names.get("SCALES")
    if get_experiment is None or scales is None:
        raise ConfigError(
            f"{path} has no get_experiment(scale) and SCALES; see configs/paper.py for an example"
        )
    if isinstance(scales, str) or not isinstance(scales, Sequence):
        raise ConfigError(f"{path}: SCALES={scales!r} must be a tuple of names: ('small',)")
    if scale not in scales:
        raise ConfigError(f"unknown scale {scale!r}; {suggest(scale, scales)}")
    try:
        with before_devices():
            experiment = get_experiment(scale)
    except Exception as error:
        raise ConfigError(f"{path}, scale {scale}: {fault_in(path, error)}") from error
    if not isinstance(experiment, Experiment):
        raise ConfigError(
            f"{path}: get_experiment({scale!r}) returns {type(experiment).__name__}, expected an "
            "Experiment"
        )
    return experiment


def expand(experiment: Experiment, overrides: Mapping[str, Value] | None = None) -> list[Entry]:
    """Every run of the experiment, each with its validated config, in the order to run them.

    Args:
      experiment: the grid.
      overrides: `{"section.key": value}` set in every run, such as the paths of a corpus.

    Raises:
      ConfigError: a change names an unknown key, a config is invalid, an override sets a key that a
        variant sets, or a name cannot be the name of a directory, or seeds are not set, once each,
        by the variant's `seeds`.
    """
    entries: list[Entry] = []
    first_of: dict[Config, str] = {}
    _check_seed(overrides or {}, "--config.")
    for group_name, group in experiment.groups.items():
        base = _changed(group.base, overrides or {}, f"group {group_name}")
        for variant_name, variant in group.variants.items():
            where = f"variant {group_name}/{variant_name}"
            _check_seed(variant.changes, f"{where}: ")
            if len(set(variant.seeds)) < len(variant.seeds):
                raise ConfigError(f"{where}: seeds={(*variant.seeds,)} has a seed twice")
            clash = sorted(set(variant.changes) & set(overrides or {}))
            if clash:
                raise ConfigError(
                    f"--config.{clash[0]} is set by the variant {group_name}/{variant_name} of the "
                    "grid; change it in the grid's file"
                )
        for variant_name, seed in _order(group):
            variant = group.variants[variant_name]
            _check_name(group_name, variant_name)
            where = f"variant {group_name}/{variant_name}"
            values = _changed(base, {**variant.changes, _SEED: seed}, where)
            try:
                config = Config.from_dict(values)
            except ConfigError as error:
                raise ConfigError(f"{where}: {error}") from error
            entry = Entry(
                group_name,
                variant_name,
                seed,
                config,
                first_of.get(config),
                variant.changes,
                experiment.linear_replacement and config.model.mlp == "two_layer",
            )
            first_of.setdefault(config, entry.name)
            entries.append(entry)
    if not entries:
        raise ConfigError("the grid has no run at this scale; give a group variants with seeds")
    return entries


def select(entries: Sequence[Entry], pattern: str) -> list[Entry]:
    """The entries to train for those whose names match a pattern of the shell, in their order.

    For an entry with the config of an earlier one, that is the earlier one.

    Raises:
      ConfigError: no name matches.
    """
    names = {entry.same_as or entry.name for entry in entries if fnmatchcase(entry.name, pattern)}
    if not names:
        raise ConfigError(
            f"--only {pattern!r} matches no run of the grid; its runs have names such as "
            f"{entries[0].name!r}, and * stands for any letters"
        )
    return [entry for entry in entries if entry.name in names]


def _order(group: Group) -> list[tuple[str, int]]:
    """(variant, seed) in the order to run them: see `Experiment`."""
    pairs = [(name, seed) for name, variant in group.variants.items() for seed in variant.seeds]
    return sorted(pairs, key=lambda pair: (-len(group.variants[pair[0]].seeds), pair[1]))


def read_overrides(arguments: Iterable[str]) -> dict[str, Value]:
    """`--config.SECTION.KEY=VALUE` arguments as `{"section.key": value}`.

    Raises:
      ConfigError: an argument is not of that form, or its key or value is not allowed.
    """
    overrides = {}
    for argument in arguments:
        key, separator, text = argument.removeprefix("--config.").partition("=")
        if not argument.startswith("--config.") or not separator:
            raise ConfigError(
                f"unexpected argument {argument!r}; set a key in all runs by "
                "--config.SECTION.KEY=VALUE"
            )
        overrides[key] = override_value(key, text)
    return overrides


def _changed(base: ConfigDict, changes: Mapping[str, Value], where: str) -> ConfigDict:
    config = base.copy_and_resolve_references()
    for key, value in changes.items():
        key_type(key, where)
        section, _, name = key.partition(".")
        try:
            config[section][name] = value
        except (TypeError, KeyError) as error:
            raise ConfigError(f"{where}: {key}={value!r}: {error}") from error
    return config


def _expect(part: object, name: str, kind: type, remedy: str) -> None:
    """Raises ConfigError unless a field is of this kind."""
    if isinstance(value := getattr(part, name), str) or not isinstance(value, kind):
        raise ConfigError(
            f"{type(part).__name__}: {name}={value!r} must be a {kind.__name__}, {remedy}"
        )


def _expect_names(part: object, name: str, kind: type) -> None:
    """Raises ConfigError unless a field maps names to parts of this kind."""
    _expect(part, name, Mapping, f"from names to {kind.__name__}s")
    for key, value in getattr(part, name).items():
        if not isinstance(key, str) or not isinstance(value, kind):
            raise ConfigError(
                f"{type(part).__name__}: {name} has {key!r}: {value!r}, expected a name and a "
                f"{kind.__name__}"
            )


def _check_seed(changes: Mapping[str, Value], where: str) -> None:
    if _SEED in changes:
        raise ConfigError(
            f"{where}{_SEED}={changes[_SEED]!r} would have no effect: the seeds of a variant are "
            "the argument `seeds` of Variant in the grid's file"
        )


def _check_name(*names: str) -> None:
    for name in names:
        if not name or name.startswith(".") or any(c in name for c in "/\\:"):
            raise ConfigError(
                f"{name!r} cannot name a directory; use letters, digits, '+', '-', '.' and '_'"
            )


def _run(path: Path) -> dict[str, Any]:
    """The names that the file of a grid defines."""
    if not find_file(path).is_file():
        raise ConfigError(f"{path} does not exist; name a grid file, such as configs/paper.py")
    if path.suffix != ".py":
        raise ConfigError(f"{path} is not a Python file")
    try:
        return run_file(path)
    except Exception as error:
        line = fault_in(path, error)
        raise ConfigError(f"{path} cannot be read as a grid ({line})") from error
