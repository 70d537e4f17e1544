"""The measurements of one group's runs, by variant and seed."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from nfllm.experiment.cause import Cause, read_cause
from nfllm.experiment.grid import Entry
from nfllm.experiment.outcome import Outcome
from nfllm.report.runs import ReportedRun, read_runs
from nfllm.rundir import RunError


@dataclasses.dataclass(frozen=True)
class Measured:
    """One run and its measurements.

    `run` and `cause` are None if there is nothing to read, and for a run that failed: its directory
    may hold another run. `cause` is None unless the run is finished.
    """

    entry: Entry
    outcome: Outcome
    run: ReportedRun | None
    cause: Cause | None

    @property
    def finished(self) -> ReportedRun | None:
        """The run, if it is finished and can be read."""
        return self.run if self.outcome.status == "finished" else None

    @property
    def loss(self) -> float | None:
        """Final evaluation loss in nats; None unless the run is finished and its loss finite."""
        loss = None if self.finished is None else self.finished.last("eval_loss_nats")
        return loss if loss is not None and np.isfinite(loss) else None

    @property
    def entropy(self) -> np.ndarray | None:
        """Head entropies `[L, H]` in nats at the last probe; None unless the run is finished."""
        return None if self.finished is None else self.finished.last("entropy_nats")


@dataclasses.dataclass(frozen=True)
class GroupResults:
    """The runs of one group, by variant and seed."""

    name: str
    title: str
    variants: Mapping[str, Mapping[int, Measured]]

    def __iter__(self) -> Iterator[Measured]:
        for seeds in self.variants.values():
            yield from seeds.values()

    def series(self, variant: str, field: str) -> dict[int, dict[int, np.ndarray]]:
        """A quantity of the metrics of the finished runs: by seed, its values by step."""
        return {
            seed: dict(zip(run.series[field][0].tolist(), run.series[field][1], strict=True))
            for seed, measured in self.variants.get(variant, {}).items()
            if (run := measured.finished) is not None and field in run.series
        }

    def diverged(self, variant: str) -> set[int]:
        """The seeds whose runs were stopped by values that are not finite."""
        runs = self.variants.get(variant, {})
        return {seed for seed, run in runs.items() if run.outcome.status == "diverged"}

    def without_entropies(self, variant: str) -> set[int]:
        """The seeds of finished runs with a head whose last entropy is not finite."""
        found = self.entropies(variant)
        return {seed for seed, entropy_LH in found.items() if not np.isfinite(entropy_LH).all()}

    def losses(self, variant: str) -> dict[int, float]:
        """Final loss by seed of the finished runs."""
        found = {seed: run.loss for seed, run in self.variants.get(variant, {}).items()}
        return {seed: loss for seed, loss in found.items() if loss is not None}

    def entropies(self, variant: str) -> dict[int, np.ndarray]:
        """Head entropies `[L, H]` by seed of the finished runs."""
        found = {seed: run.entropy for seed, run in self.variants.get(variant, {}).items()}
        return {seed: entropy for seed, entropy in found.items() if entropy is not None}

    @property
    def maximum(self) -> float | None:
        """M: the largest head entropy observed over all finished runs of the group, in nats.

        None if there is none above 0.
        """
        found = [e[np.isfinite(e)].max(initial=0) for m in self if (e := m.entropy) is not None]
        return float(max(found, default=0)) or None


def read_group(
    name: str, title: str, entries: Sequence[Entry], outcomes: Mapping[str, Outcome], out: Path
) -> GroupResults:
    """Reads the runs of one group; what cannot be read is left out, and its outcome says why."""
    variants: dict[str, dict[int, Measured]] = {}
    for entry in entries:
        directory = out / (entry.same_as or entry.name)
        run = read_runs([directory])[0] if directory.is_dir() else None
        outcome = outcomes[entry.name]
        if outcome.status == "failed":
            run = None
        cause = None
        if outcome.status == "finished":
            # Of a finished run a file that cannot be read is one that the grid does not ask for.
            with contextlib.suppress(RunError):
                cause = read_cause(directory)
        measured = Measured(entry, outcome, run, cause)
        variants.setdefault(entry.variant, {})[entry.seed] = measured
    return GroupResults(name, title, variants)
