"""Which checkpoints of a run are kept when another one is written."""

from __future__ import annotations

from collections.abc import Collection

from orbax.checkpoint import checkpoint_managers as managers

from nfllm.config import CheckpointConfig


def make_retention(
    config: CheckpointConfig, earlier: CheckpointConfig, present: Collection[int]
) -> managers.PreservationPolicy:
    """Keeps the newest `keep`, the multiples of `keep_every`, and what was kept on purpose.

    A run that is resumed with other values, for example without the `keep_every` of the first
    command, deletes nothing that the earlier command left there.

    Args:
      config: of the command that runs.
      earlier: of the command that the run is resumed from; `config` for a new run.
      present: steps of the checkpoints that the directory holds before the first save.
    """
    left = sorted(present)
    if (earlier.keep, earlier.keep_every) == (config.keep, config.keep_every):
        left = left[: -config.keep]  # the newest were going to be replaced
    policies: list[managers.PreservationPolicy] = [
        managers.LatestN(config.keep),
        managers.CustomSteps(left),
    ]
    if config.keep_every is not None:
        policies.append(managers.EveryNSteps(config.keep_every))
    return managers.AnyPreservationPolicy(policies)
