"""The state of a run of a grid, read from its directory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from etils import epath

from nfllm.config.paths import status
from nfllm.experiment.cause import read_cause
from nfllm.experiment.grid import Entry
from nfllm.rundir import RECORD_FILE, RunError, read_record
from nfllm.rundir.metrics import read_metrics
from nfllm.trainer.record import measured_differently

Status = Literal["finished", "diverged", "failed", "not run"]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The state of a run: one that is `finished` or `diverged` is not started again.

    `message` explains a state other than `finished`. A run is `blocked`, and counts as `failed`, if
    its directory holds another run.
    """

    status: Status
    message: str = ""
    blocked: bool = False

    @property
    def is_final(self) -> bool:
        """Whether starting the run again would change nothing."""
        return self.blocked or self.status in ("finished", "diverged")


def read_outcome(out: epath.PathLike, entry: Entry) -> Outcome:
    """The state of `entry` in the output directory `out`; never raises."""
    run = epath.Path(out) / entry.name
    if not (run / RECORD_FILE).exists():
        return Outcome("not run", "it has not started")
    try:
        changed = measured_differently(read_record(run).config, entry.config)
    except RunError as error:
        return Outcome("failed", str(error), blocked=True)
    if changed:
        key, (old, new) = next(iter(changed.items()))
        return Outcome(
            "failed",
            f"its directory holds a run with {key}={old!r}, the grid has {new!r}; delete it, or "
            "choose another --out",
            blocked=True,
        )
    rows = read_metrics(run).rows
    events = rows["event"]
    last = events[-1] if events else {}
    if last.get("event") == "stopped":
        faults = [event.get("message") for event in events if event.get("event") == "non_finite"]
        return Outcome("diverged", str(faults[-1]) if faults else "the line that says why is lost")
    if last.get("event") == "finished" and _is_measured(run, entry):
        loss = rows["eval"][-1].get("eval_loss_nats", 0.0) if rows["eval"] else 0.0
        if not math.isfinite(loss):  # with training.non_finite="continue"
            return Outcome("diverged", f"its last evaluation loss is {loss}")
        return Outcome("finished")
    return Outcome("not run", f"it stopped at step {last.get('step', 0)}")


def _is_measured(run: epath.Path, entry: Entry) -> bool:
    """Whether what is measured after training is there; what cannot be read is measured anew."""
    try:
        return not entry.linear_replacement or read_cause(run) is not None
    except RunError:
        return False


def refuse_other_runs(chosen: Sequence[Entry], out: epath.PathLike) -> None:
    """Raises RunError if the directories of all these entries hold other runs.

    Nothing could be trained, and the page would replace that of the other runs.
    """
    own = [entry for entry in chosen if entry.same_as is None]
    outcomes = [read_outcome(out, entry) for entry in own]
    if outcomes and all(outcome.blocked for outcome in outcomes):
        raise RunError(f"--out {out} is of another grid: of {own[0].name}, {outcomes[0].message}")


def refuse_other_data(
    entries: Sequence[Entry], outcomes: Mapping[str, Outcome], out: epath.PathLike
) -> dict[str, Outcome]:
    """The outcomes, with `failed` for runs on data that has since changed.

    Runs whose configs name the same data must have the data fingerprint of the newest such run.
    """
    checked = dict(outcomes)
    newest: dict[Any, str] = {}
    ended = [
        entry
        for entry in entries
        if entry.same_as is None and outcomes[entry.name].status in ("finished", "diverged")
    ]

    def started(entry: Entry) -> float:
        return status(epath.Path(out) / entry.name / RECORD_FILE).mtime

    for entry in sorted(ended, key=started, reverse=True):
        fingerprint = read_record(epath.Path(out) / entry.name).data_fingerprint
        named = (entry.config.data, entry.config.model.context_length)
        if newest.setdefault(named, fingerprint) != fingerprint:
            checked[entry.name] = Outcome(
                "failed",
                f"it was trained on data with fingerprint {fingerprint[:12]}, which has since "
                f"changed to {newest[named][:12]}; delete it, and give the same command again",
                blocked=True,
            )
    return checked
