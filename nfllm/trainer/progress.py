"""Progress of training: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from typing import TextIO

from tqdm import tqdm

_PLAIN_INTERVAL_SECONDS = 15.0


class Progress:
    """Shows step, loss, tokens per second and time left.

    Example:
      >>> with Progress(total=1000, done=0, stream=sys.stdout) as progress:
      ...     progress.update(10, loss_nats=5.1, tokens_per_second=9000.0, seconds_left=83.6)
      ...     progress.say("checkpoint saved")
      step 10/1000  loss 5.1000  9,000 tokens/s  0:01:24 left
      checkpoint saved
    """

    def __init__(self, total: int, done: int, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._total = total
        self._shown_at = -_PLAIN_INTERVAL_SECONDS
        self._bar: tqdm | None = None
        if self._stream.isatty():
            self._bar = tqdm(
                total=total,
                initial=done,
                file=self._stream,
                dynamic_ncols=True,
                unit="step",
                bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
            )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(
        self, step: int, loss_nats: float, tokens_per_second: float, seconds_left: float
    ) -> None:
        """Shows the state after `step` steps; without a terminal, at most every 15 seconds.

        Speed and time left are not shown if they are NaN, as before the second step.
        """
        text = f"loss {loss_nats:.4f}"
        if math.isfinite(tokens_per_second):
            text += f"  {tokens_per_second:,.0f} tokens/s"
        left = f"{_duration(seconds_left)} left" if math.isfinite(seconds_left) else ""
        if self._bar is not None:
            self._bar.set_description_str(text, refresh=False)
            self._bar.set_postfix_str(left, refresh=False)
            self._bar.n = step
            self._bar.refresh()
            return
        now = time.monotonic()
        if now - self._shown_at < _PLAIN_INTERVAL_SECONDS and step < self._total:
            return
        self._shown_at = now
        self.say(f"step {step}/{self._total}  {text}  {left}".rstrip())

    def say(self, line: str) -> None:
        """Prints a line, above the bar if there is one."""
        if self._bar is not None:
            self._bar.write(line, file=self._stream)
        else:
            print(line, file=self._stream, flush=True)


def _duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
