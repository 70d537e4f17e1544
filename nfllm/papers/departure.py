"""When the layers of a model leave uniform attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nfllm.analysis.heads import OVERLOADED
from nfllm.experiment.measured import GroupResults
from nfllm.papers.evidence import common_steps
from nfllm.report.tables import Column, Table


def layer_entropies(group: GroupResults, variant: str) -> tuple[np.ndarray, np.ndarray]:
    """Entropy of every layer through training, as the mean of its heads.

    Returns:
      The steps `[N]` of the probes that all finished runs of the variant have, and the entropies
      `[S, N, L]` in nats by seed; both are empty if nothing was recorded.
    """
    series = group.series(variant, "entropy_nats")
    steps = common_steps({variant: series})
    if not steps:
        return np.zeros(0), np.zeros((0, 0, 0))
    by_seed = [[series[seed][step].mean(-1) for step in steps] for seed in sorted(series)]
    return np.asarray(steps, np.float64), np.asarray(by_seed, np.float64)


def departures(steps_N: np.ndarray, entropy_NL: np.ndarray, maximum: float) -> np.ndarray:
    """The step from which a layer's entropy stays below 3/4 of `maximum` until the end.

    Args:
      steps_N: steps of the probes, ascending.
      entropy_NL: entropy of each layer in nats.
      maximum: M in nats.

    Returns:
      `[L]` steps, infinite for a layer that is not below it at the end. NaN counts as not below.

    Example:
      >>> import numpy as np
      >>> entropy_NL = np.array([[3.8, 3.8], [2.0, 3.8], [3.8, 3.7], [1.0, 3.6], [0.5, 3.6]])
      >>> departures(np.array([0, 100, 200, 300, 400]), entropy_NL, maximum=4.0)
      array([300.,  inf])
    """
    is_below_NL = entropy_NL < OVERLOADED * maximum
    stays_below_NL = np.logical_and.accumulate(is_below_NL[::-1])[::-1]
    steps_NL = np.where(stays_below_NL, np.asarray(steps_N, np.float64)[:, None], np.inf)
    return np.asarray(steps_NL.min(axis=0))


def departure_table(group: GroupResults, variants: Sequence[str]) -> Table:
    """For each layer and variant: how many seeds left uniform attention, and at which step."""
    found: Mapping[str, np.ndarray] = {}
    if group.maximum is not None:
        found = {
            variant: np.stack([departures(steps_N, e_NL, group.maximum) for e_NL in entropy_SNL])
            for variant in variants
            for steps_N, entropy_SNL in [layer_entropies(group, variant)]
            if len(entropy_SNL)
        }
    columns = [Column("layer", "d")]
    for variant in found:
        columns += [
            Column(f"{variant}: seeds that left", ""),
            Column("median step", ",d"),
            Column("earliest", ",d"),
            Column("latest", ",d"),
        ]
    layers = max((steps_SL.shape[1] for steps_SL in found.values()), default=0)
    rows = []
    for layer in range(layers):
        row: list[str | int | None] = [layer]
        for steps_SL in found.values():
            left = np.sort(steps_SL[:, layer][np.isfinite(steps_SL[:, layer])])
            row += [f"{len(left)} of {len(steps_SL)}"]
            ends = (np.median(left), left[0], left[-1]) if len(left) else ()
            row += [round(float(step)) for step in ends] or [None] * 3
        rows.append(tuple(row))
    return Table(tuple(columns), tuple(rows))
