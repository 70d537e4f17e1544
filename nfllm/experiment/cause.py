"""How linear the MLPs of a run are, as a cause of its entropy: measured once, after training.

The activations of one layer, of each half, or of all layers are replaced by their best linear fits,
and the loss is measured again on the same windows (`nfllm.measure.linear_replacement`). If the loss
does not rise, the MLPs of these layers are linear.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from etils import epath

import nfllm
from nfllm.measure.linear_replacement import replace_by_linear
from nfllm.rundir import RunError, write_whole

CAUSE_FILE = "cause.json"

_WINDOWS = 256
_BATCH_SIZE = 8


@dataclasses.dataclass(frozen=True)
class Cause:
    """Losses in nats per target over `num_targets` targets, and the fit of each layer.

    Attributes:
      step: step of the checkpoint that was measured.
      loss: loss of the unchanged model.
      layer_loss: `[L]`, loss with the activation of that layer replaced.
      early_loss: loss with the activations of the first half of the layers replaced.
      late_loss: loss with those of the second half replaced.
      all_loss: loss with all replaced.
      pre_rms: `[L]`, root mean square of the pre-activation.
      r_squared: `[L]`, share of the activation's variance that the linear fit explains.
      slope: `[L]`, slope of the fit.
      num_targets: number of predictions that the losses are means of.
    """

    step: int
    loss: float
    layer_loss: list[float]
    early_loss: float
    late_loss: float
    all_loss: float
    pre_rms: list[float]
    r_squared: list[float]
    slope: list[float]
    num_targets: int


def write_cause(path: epath.PathLike) -> Cause:
    """Measures the newest checkpoint of the run in `path` and writes `cause.json` beside it."""
    run = nfllm.load_run(path)
    batches = run.validation_batches(_BATCH_SIZE, max_windows=_WINDOWS)
    found = nfllm.analyze(run.model, run.params, batches, ["linear_fit", "mlp_pre_rms"])
    fit = found["linear_fit"]
    replaced = replace_by_linear(run.model, run.params, batches, fit)
    cause = Cause(
        step=run.step,
        loss=replaced.loss,
        layer_loss=replaced.layer_loss.tolist(),
        early_loss=replaced.early_loss,
        late_loss=replaced.late_loss,
        all_loss=replaced.all_loss,
        pre_rms=found["mlp_pre_rms"].tolist(),
        r_squared=fit.r_squared.tolist(),
        slope=fit.slope.tolist(),
        num_targets=replaced.num_targets,
    )
    text = json.dumps(dataclasses.asdict(cause), indent=1) + "\n"
    write_whole(epath.Path(path) / CAUSE_FILE, text.encode())
    return cause


def read_cause(path: epath.PathLike) -> Cause | None:
    """What `write_cause` wrote; None where there is no such file.

    Raises:
      RunError: the file is incomplete or of another version.
    """
    file = epath.Path(path) / CAUSE_FILE
    if not file.exists():
        return None
    try:
        values: dict[str, Any] = json.loads(file.read_bytes())
        return Cause(**values)
    except (ValueError, TypeError) as error:
        raise RunError(f"{file} cannot be read ({error}); delete it and run again") from error
