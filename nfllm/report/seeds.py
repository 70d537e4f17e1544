"""Groups of runs that differ only in their seed, and the curves of such groups."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from nfllm.report.figures import Curve
from nfllm.report.runs import ReportedRun


class SeedGroup(NamedTuple):
    """Runs of one variant; a run that has not finished is a group of its own.

    `place` is the index of the first run in the report, which gives the group its colour.
    """

    label: str
    place: int
    runs: Sequence[ReportedRun]


def seed_groups(runs: Sequence[ReportedRun]) -> list[SeedGroup]:
    """The runs by variant, in the order of each variant's first run.

    A group of several runs is named by the notation of its model, or by the label of its first run
    if another group has that notation. A second run of a seed is a group of its own, since it says
    nothing about the spread between seeds.
    """
    found: dict[tuple[Any, ...], list[int]] = {}
    seeds: set[tuple[Any, ...]] = set()
    for index, run in enumerate(runs):
        variant = _variant(run)
        if variant is None or (seed := (*variant, _seed(run))) in seeds:
            found[(index,)] = [index]
        else:
            seeds.add(seed)
            found.setdefault(variant, []).append(index)
    groups: list[SeedGroup] = []
    for members in found.values():
        first = runs[members[0]]
        label = first.label
        if len(members) > 1 and (name := first.notation):
            label = label if any(name == group.label for group in groups) else name
        groups.append(SeedGroup(label, members[0], [runs[index] for index in members]))
    return groups


def data_of(run: ReportedRun) -> tuple[Any, ...]:
    """What two runs must share for their perplexities to be comparable; empty if unknown."""
    if run.record is None:
        return ()
    record, config = run.record, run.record.config
    targets = config.data.mask_end_of_text, config.evaluation.max_windows
    return record.data_fingerprint, record.vocab_size, config.model.context_length, *targets


def seed_curve(group: SeedGroup, field: str) -> Curve | None:
    """A recorded number over the steps that all runs of the group have; None if none has it.

    For several runs it is their mean, with a band from the lowest to the highest.
    """
    series = [run.series[field] for run in group.runs if field in run.series]
    if not series:
        return None
    steps_N = functools.reduce(np.intersect1d, (x_N for x_N, _ in series))
    if len(series) == 1 or not steps_N.size:
        return Curve(group.label, *series[0], group.place)
    y_SN = np.stack([y_N[np.isin(x_N, steps_N)] for x_N, y_N in series])
    label = f"{group.label}, {len(series)} seeds"
    return Curve(label, steps_N, y_SN.mean(0), group.place, y_SN.min(0), y_SN.max(0))


def _seed(run: ReportedRun) -> int | None:
    return None if run.record is None else run.record.config.training.seed


def _variant(run: ReportedRun) -> tuple[Any, ...] | None:
    """What the seeds of one variant share; None for a run that does not count as one of them."""
    if run.record is None or run.status != "finished" or run.last("eval_loss_nats") is None:
        return None
    training = dataclasses.replace(run.record.config.training, seed=0)
    return dataclasses.replace(run.record.config, training=training), *data_of(run)
