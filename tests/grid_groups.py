"""Groups of a grid whose runs have chosen numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from synthetic_runs import write_run

from nfllm.config import get_config
from nfllm.experiment import Experiment, Group, Variant
from nfllm.experiment.cause import CAUSE_FILE
from nfllm.experiment.grid import Entry, expand
from nfllm.experiment.measured import GroupResults, read_group
from nfllm.experiment.outcome import Outcome

NORMALIZATION = {"sm": "none", "sm+ln": "layernorm"}
ACTIVATION = {"g": "gelu", "r": "relu"}


def group_of(
    folder: Path,
    losses: Mapping[str, Sequence[float]],
    entropies: Mapping[str, Any] | None = None,
    causes: Mapping[str, str] | None = None,
    extra: Mapping[str, Mapping[str, Any]] | None = None,
    outcomes: Mapping[str, Outcome] | None = None,
    slopes: Mapping[str, Sequence[np.ndarray]] | None = None,
) -> GroupResults:
    """A group with the given losses `{variant: [of each seed]}`, read back from run directories.

    `entropies` are `[L, H]` of a variant, or a list of them by seed; `slopes` `[N, L]` by seed.
    """
    variants = {}
    for name, values in losses.items():
        changes = dict((extra or {}).get(name, {}))
        if not changes:
            block, _, letter = name.rpartition("+")
            changes = {
                "model.normalization": NORMALIZATION[block],
                "model.activation": ACTIVATION[letter],
            }
        variants[name] = Variant(changes, seeds=tuple(range(len(values))))
    experiment = Experiment("", {"main": Group("Six", get_config(), variants)})
    entries = expand(experiment)
    found = {}
    for entry in entries:
        write_entry(folder, entry, losses, entropies, slopes)
        if causes:
            (folder / entry.name / CAUSE_FILE).write_text(causes[entry.variant])
        found[entry.name] = (outcomes or {}).get(entry.name, Outcome("finished"))
    return read_group("main", "Six", entries, found, folder)


def write_entry(
    folder: Path,
    entry: Entry,
    losses: Mapping[str, Sequence[float]],
    entropies: Mapping[str, Any] | None = None,
    slopes: Mapping[str, Sequence[np.ndarray]] | None = None,
) -> None:
    """The run directory of one entry."""
    entropy = (entropies or {}).get(entry.variant)
    if isinstance(entropy, list):
        entropy = entropy[entry.seed]
    write_run(
        folder / entry.name,
        {**entry.changes, "training.seed": entry.seed},
        np.full((4, 4), 3.0) if entropy is None else entropy,
        losses[entry.variant][entry.seed],
        slopes_NL=None if slopes is None else slopes[entry.variant][entry.seed],
        decayed_parameters=("blocks.mlp.slope",) if entry.config.optimizer.decay_slopes else (),
    )
