"""Runs the entries of a grid, several at once, each in its own process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from nfllm.experiment.grid import Entry
from nfllm.experiment.outcome import Outcome, read_outcome, refuse_other_data
from nfllm.experiment.progress import GridProgress
from nfllm.experiment.slots import Slot
from nfllm.experiment.worker import DIVERGED
from nfllm.trainer import interrupt

LOGS_DIR = "logs"

_POLL_SECONDS = 0.2


def run_grid(
    entries: Sequence[Entry], chosen: Sequence[Entry], out: Path, slots: Sequence[Slot]
) -> tuple[dict[str, Outcome], bool]:
    """Trains every chosen entry that is not finished, in order, one in each slot at a time.

    A run that fails does not stop the others; the next call starts it again. SIGINT and SIGTERM
    interrupt the runs, which save first; after a second Ctrl-C this process does not wait for them.

    Args:
      entries: all of the grid.
      chosen: those to train, none with the config of another.
      out: the output directory.
      slots: where to train.

    Returns:
      The outcome of each entry by name, and whether all that were chosen ended (False after an
      interruption).
    """
    outcomes = {entry.name: read_outcome(out, entry) for entry in entries if entry.same_as is None}
    waiting = [entry for entry in chosen if not outcomes[entry.name].is_final]
    free, running = list(slots), list[_Job]()
    with interrupt.watch() as signals, GridProgress(chosen, out, outcomes) as progress:
        while (waiting and signals.signal is None) or running:
            while waiting and free and signals.signal is None:
                running.append(_Job(waiting.pop(0), out, free.pop(0)))
            if signals.signal is not None:
                for job in running:
                    job.interrupt()
            for job in [job for job in running if job.has_ended()]:
                running.remove(job)
                free.append(job.slot)
                outcomes[job.entry.name] = job.outcome()
                progress.ended(job.entry, outcomes[job.entry.name])
            progress.show([job.entry for job in running])
            time.sleep(_POLL_SECONDS)
    outcomes = refuse_other_data(entries, outcomes, out)
    for entry in entries:
        if entry.same_as is not None:
            outcomes[entry.name] = outcomes[entry.same_as]
    return outcomes, signals.signal is None


class _Job:
    """A run in progress; its output goes to a log file."""

    def __init__(self, entry: Entry, out: Path, slot: Slot) -> None:
        self.entry, self.slot = entry, slot
        self._out, self._was_interrupted = out, False
        self._log = out / LOGS_DIR / f"{entry.name}.txt"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "nfllm.experiment.worker", str(out / entry.name)]
        command += ["--parent", str(os.getpid())]
        if entry.linear_replacement:
            command += ["--linear-replacement"]
        for source in entry.config.sources().values():
            command += ["--import", source.file]
        if slot.cores:
            command += ["--cores", ",".join(map(str, slot.cores))]
        with open(self._log, "a") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **slot.environment},
                text=True,
                start_new_session=True,  # the experiment catches Ctrl-C and passes it on
            )
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as stdin:
            json.dump(entry.config.to_dict(), stdin)

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def interrupt(self) -> None:
        """Asks the run to save and end; later calls do nothing."""
        if not self._was_interrupted and not self.has_ended():
            self._was_interrupted = True
            self._process.send_signal(signal.SIGTERM)

    def outcome(self) -> Outcome:
        code = self._process.returncode
        found = read_outcome(self._out, self.entry)
        if self._was_interrupted or (found.is_final and code in (0, DIVERGED)):
            return found
        ended = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        where = self._log.relative_to(self._out)
        last = _last_line(self._log, self._log_start)
        return Outcome("failed", f"{ended}; {last} (whole log: {where})")


def _last_line(log: Path, start: int) -> str:
    """The last error, or else the last line, behind the first `start` bytes of the log."""
    lines = log.read_bytes()[start:].decode(errors="replace").strip().splitlines()
    wanted = [line for line in lines if line.startswith("error: ")] or lines
    return wanted[-1][:500] if wanted else "it printed nothing"
