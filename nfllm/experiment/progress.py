"""Progress over a whole grid: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from nfllm.experiment.grid import Entry
from nfllm.experiment.outcome import Outcome
from nfllm.rundir import METRICS_FILE

_PLAIN_INTERVAL_SECONDS = 60.0
_BAR_INTERVAL_SECONDS = 1.0
_TAIL_BYTES = 1 << 16


class GridProgress:
    """Shows how many of the entries to train have ended, which are running, and the time left.

    The time is judged by the tokens trained.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        out: Path,
        outcomes: Mapping[str, Outcome],
        stream: TextIO | None = None,
    ) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._own = list(entries)
        self._out, self._outcomes = out, outcomes
        self._total = sum(entry.tokens for entry in self._own)
        self._started_at, self._started_from = time.monotonic(), self._tokens_done()
        self._shown_at = 0.0
        self._bar: tqdm | None = None
        if self._stream.isatty():
            self._bar = tqdm(
                total=100,
                file=self._stream,
                dynamic_ncols=True,
                bar_format="{desc} {percentage:3.0f}%|{bar}|",
            )

    def __enter__(self) -> GridProgress:
        done = self._num_done()
        skipped = f", {done} of them already done" if done else ""
        self._say(f"{len(self._own)} runs{skipped}")
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def ended(self, entry: Entry, outcome: Outcome) -> None:
        """Prints how a run ended."""
        detail = f": {outcome.message}" if outcome.message else ""
        self._say(f"{entry.name} {outcome.status}{detail}")

    def show(self, running: Sequence[Entry]) -> None:
        """Shows the state, at most once a second; without a terminal, once a minute."""
        interval = _PLAIN_INTERVAL_SECONDS if self._bar is None else _BAR_INTERVAL_SECONDS
        now = time.monotonic()
        if now - self._shown_at < interval or not running:
            return
        self._shown_at = now
        tokens = self._tokens_done()
        done = self._num_done()
        names = ", ".join(entry.name for entry in running[:4]) + (" …" if len(running) > 4 else "")
        text = f"{done}/{len(self._own)} runs  {names}  {self._time_left(tokens, now)} left"
        if self._bar is None:
            self._say(f"{100 * tokens / self._total:.0f}%  {text}")
        else:
            self._bar.set_description_str(text, refresh=False)
            self._bar.n = round(100 * tokens / self._total)
            self._bar.refresh()

    def _say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.write(line, file=self._stream)
        else:
            print(line, file=self._stream, flush=True)

    def _num_done(self) -> int:
        outcomes = [self._outcomes[entry.name] for entry in self._own]
        return sum(outcome.is_final and not outcome.blocked for outcome in outcomes)

    def _tokens_done(self) -> int:
        return sum(
            entry.tokens
            if self._outcomes[entry.name].is_final
            else entry.tokens * self._step(entry) // entry.config.training.steps
            for entry in self._own
        )

    def _step(self, entry: Entry) -> int:
        """The step of the last whole line of metrics, read from the end of the file."""
        try:
            with open(self._out / entry.name / METRICS_FILE, "rb") as file:
                file.seek(max(0, file.seek(0, 2) - _TAIL_BYTES))
                whole = file.read().rpartition(b"\n")[0]
            return int(json.loads(whole.rpartition(b"\n")[2])["step"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0  # no step yet, or a line longer than the part that was read

    def _time_left(self, tokens: int, now: float) -> str:
        done = tokens - self._started_from
        if done <= 0:
            return "?"
        seconds = round((now - self._started_at) / done * (self._total - tokens))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}"
