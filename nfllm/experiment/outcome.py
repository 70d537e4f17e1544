"""How a run of a grid stands, read from its directory."""

from __future__ import annotations

import dataclasses
from typing import Literal

from etils import epath

from nfllm.experiment.cause import CAUSE_FILE
from nfllm.experiment.grid import Entry
from nfllm.rundir import METRICS_FILE, RECORD_FILE, RunError, read_metrics, read_record
from nfllm.training.record import measured_differently

Status = Literal["finished", "diverged", "failed", "not run"]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """`finished` and `diverged` are final; `message` says more about the other two."""

    status: Status
    message: str = ""

    @property
    def is_final(self) -> bool:
        """Whether running the entry again could not change anything."""
        return self.status in ("finished", "diverged")


def read_outcome(out: epath.PathLike, entry: Entry) -> Outcome:
    """How `entry` stands in the output directory `out`; never raises."""
    run = epath.Path(out) / entry.name
    if not (run / RECORD_FILE).exists():
        return Outcome("not run", "it has not begun")
    try:
        changed = measured_differently(read_record(run).config, entry.config)
    except RunError as error:
        return Outcome("failed", str(error))
    if changed:
        key, (old, new) = next(iter(changed.items()))
        return Outcome(
            "failed",
            f"its directory holds a run with {key}={old!r}, the grid has {new!r}; delete it, or "
            "choose another --out",
        )
    events = read_metrics(run).rows["event"] if (run / METRICS_FILE).exists() else []
    last = events[-1] if events else {}
    if last.get("event") == "non_finite" and entry.config.training.non_finite == "stop":
        return Outcome("diverged", str(last.get("message", "")))
    if last.get("event") == "finished" and (run / CAUSE_FILE).exists():
        return Outcome("finished")
    return Outcome("not run", f"it stopped at step {last.get('step', 0)}")
