"""Loads a trained run for analysis."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from etils import epath

from nfllm import rundir
from nfllm.config import Config
from nfllm.data.tokenizer import Tokenizer
from nfllm.rundir import Metrics

if TYPE_CHECKING:
    from nfllm.model.decoder import Decoder


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory in memory.

    Attributes:
      path: the run directory.
      step: optimizer steps behind `params`.
      model: the decoder, computing in float32.
      params: its parameters, a nested dictionary of float32 arrays; blocks are stacked, [L, ...].
      tokenizer: text to token ids and back.
      config: what was run.
      metrics: the lines of metrics.jsonl.
    """

    path: epath.Path
    step: int
    model: Decoder
    params: Any
    tokenizer: Tokenizer
    config: Config
    metrics: Metrics


def load_run(path: epath.PathLike) -> Run:
    """The newest whole checkpoint of a run directory, with its model, tokenizer and metrics.

    Raises:
      RunError: there is no run at `path`, or none of its checkpoints can be read.

    Example:
      run = nfllm.load_run("runs/default")
      captured = nfllm.capture(run.model, run.params, run.tokenizer.encode("def f(x):")[None])
    """
    from nfllm.model.decoder import Decoder
    from nfllm.training.checkpoint import restore_params

    directory = epath.Path(path)
    record = rundir.read_record(directory)
    step, params = restore_params(directory)
    # What trained it may not exist on this machine, nor in float32.
    model = dataclasses.replace(record.config.model, attention_implementation="auto")
    return Run(
        path=directory,
        step=step,
        model=Decoder(model, record.vocab_size),
        params=params,
        tokenizer=Tokenizer.load(directory / rundir.TOKENIZER_FILE),
        config=record.config,
        metrics=rundir.read_metrics(directory),
    )
