"""The state from which a run starts or is resumed, and what its first event says."""

from __future__ import annotations

from typing import Literal, NamedTuple

from etils import epath

from nfllm.config.recipes import recipe_note
from nfllm.rundir import Origin, RunError, read_record
from nfllm.trainer import warm_start
from nfllm.trainer.checkpoints import Checkpoints
from nfllm.trainer.program import Program
from nfllm.trainer.record import check_resumable, describe_changes
from nfllm.training.state import TrainState


class Start(NamedTuple):
    """Where a run begins: its state, the source of its first parameters, and its first event."""

    state: TrainState
    origin: Origin | None
    event: Literal["started", "resumed"]
    message: str


def find_start(run: epath.Path, program: Program, checkpoints: Checkpoints) -> Start:
    """The newest checkpoint of the run directory `run`, or the state before the first step.

    Raises:
      RunError: `run` holds a run of another config or of other data, or a longer one; or the source
        of a warm start cannot be read.
      ConfigError: the parameters of a warm start do not fit.
    """
    config = program.config
    earlier = check_resumable(run, config)
    saved = checkpoints.restore(program.abstract_state(), program.dataset.fingerprint)
    if saved is None:
        state, origin = warm_start.first_state(program)
        parts = [program.describe(), origin, recipe_note(config)]
        text = "; ".join(str(part) for part in parts if part)
        return Start(state, origin, "started", f"started: {text}")
    step = int(saved.step)
    if step > config.training.steps:
        raise RunError(
            f"{run} is at step {step}, but training.steps={config.training.steps}; raise it, or "
            "choose another --workdir"
        )
    changes = describe_changes(earlier, config, step, int(saved.skipped)) if earlier else ""
    state = program.placement.from_checkpoint(saved)
    return Start(state, read_record(run).origin, "resumed", f"resumed at step {step}{changes}")
