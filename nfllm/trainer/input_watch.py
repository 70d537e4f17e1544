"""Reports when training waits for its data."""

from __future__ import annotations

import jax
from absl import logging

from nfllm.trainer.journal import Journal

_SLOW_SECONDS = 1.0
_SLOW_SHARE = 0.1


class InputWatch:
    """Writes an event each time that the input becomes slow or stalls.

    Only the first process has a journal; the others, whose data may be slow too, print a warning.

    Example:
      >>> from etils import epath
      >>> with Journal(epath.Path("runs/relu"), total_steps=100, done=0) as journal:
      ...     watch = InputWatch(journal, step=0)
      ...     watch.lap(25, waited=3.2, trained=9.0)  # with every line of metrics
      steps 1 to 25 waited 3.2 s for data, 36% of their time: reading is slower than training
    """

    def __init__(self, journal: Journal, step: int) -> None:
        self._journal = journal
        self._step = step
        self._waited = self._trained = 0.0
        self._slow = False

    def lap(self, step: int, waited: float, trained: float) -> None:
        """Reports a slow input after `step`.

        A lap is slow if more than 1 s and more than a tenth of its time was spent waiting for data.
        Of consecutive slow laps only the first is reported.

        Args:
          step: the number of steps so far.
          waited: seconds waited for data since the start of the run.
          trained: seconds of training since the start of the run.
        """
        lap_waited, lap_trained = waited - self._waited, trained - self._trained
        slow = lap_waited > max(_SLOW_SECONDS, _SLOW_SHARE * lap_trained)
        if slow and not self._slow:
            share = lap_waited / max(lap_waited, lap_trained)
            self._say(
                "slow_input",
                step,
                f"steps {self._step + 1} to {step} waited {lap_waited:.1f} s for data, {share:.0%} "
                "of their time: reading is slower than training",
            )
        self._step, self._waited, self._trained, self._slow = step, waited, trained, slow

    def stalled(self, seconds: float) -> None:
        """Reports that the next batch has not arrived after this many seconds."""
        self._say(
            "stalled_input",
            self._step,
            f"after step {self._step} or later: no data for {seconds:.0f} s, still waiting; look "
            "at the storage of data.data_dir",
        )

    def _say(self, event: str, step: int, message: str) -> None:
        self._journal.event(event, step, message)
        if jax.process_index():
            logging.warning("process %d: %s", jax.process_index(), message)
