"""Trains a decoder: turns flags into a config and calls nfllm.trainer.loop.fit.

    python -m nfllm.train
    python -m nfllm.train --config configs/gpt2_codeparrot.py:sm+r --workdir runs/gpt2

The same command with the same --workdir continues from the newest checkpoint.
"""

from __future__ import annotations

from nfllm import startup

startup.end_on_ctrl_c()

# ruff: noqa: E402 (the imports below are slow: Ctrl-C must work before them)
import sys
from signal import SIGINT
from typing import TYPE_CHECKING

from absl import flags, logging
from etils import epath

from nfllm.config import Config, ConfigError
from nfllm.console import escape_unprintable
from nfllm.flags import check_no_arguments, define_config, run

if TYPE_CHECKING:
    from nfllm.trainer.loop import FitResult

_CONFIG = define_config()
_WORKDIR = flags.DEFINE_string("workdir", "runs/default", "The run directory.")
_REPORT = flags.DEFINE_bool("report", True, "Whether to write a report at the end of training.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0 of several.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes of the run.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Index of this process, from 0.")


def main(arguments: list[str]) -> None:
    """Runs the configured training and prints how it ended."""
    escape_unprintable()
    check_no_arguments(arguments)
    try:
        _train()
    except KeyboardInterrupt:  # before the first step, or a second one while saving
        sys.exit(130)


def _train() -> None:
    try:
        config = Config.from_dict(_CONFIG.value)
    except ConfigError as error:
        sys.exit(f"error: {error}")
    logging.set_verbosity(logging.WARNING)  # Orbax logs every step of a save

    # Imported after the config is checked, since it takes seconds.
    from nfllm.data.records import MalformedRecordError
    from nfllm.rundir import RunError
    from nfllm.trainer import hosts, peers
    from nfllm.trainer.loop import fit
    from nfllm.trainer.non_finite import NonFiniteError

    startup.raise_on_ctrl_c()
    try:
        hosts.join(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        with peers.watched():
            result = fit(config, _WORKDIR.value)
            if hosts.is_first() and not result.interrupted:
                _summarize(config, _WORKDIR.value, result)
    except (ConfigError, RunError, NonFiniteError, MalformedRecordError, OSError) as error:
        sys.exit(f"error: {error}")
    if result.interrupted:
        print(f"continue with the same command; {_WORKDIR.value} is at step {result.step}")
        sys.exit(130 if result.interrupted == SIGINT else 0)


def _summarize(config: Config, workdir: str, result: FitResult) -> None:
    from nfllm.analysis import causal_entropy_ceiling
    from nfllm.report import ASCII_SHADES, UNICODE_SHADES, entropy_text, write_report
    from nfllm.rundir import REPORT_DIR

    evaluation = result.evaluation
    assert evaluation is not None  # only an interrupted run has none
    print(
        f"\nevaluation  loss {evaluation.loss_nats:.4f} nats per token, perplexity "
        f"{evaluation.perplexity:.2f}, over {evaluation.num_targets:,} targets"
    )
    if result.tokens_per_second > 0:  # NaN if there was nothing left to train
        print(f"speed       {result.tokens_per_second:,.0f} tokens/s")
    if result.entropy_LH is not None:
        ceiling = causal_entropy_ceiling(config.model.context_length)
        shades = UNICODE_SHADES if "utf" in sys.stdout.encoding.lower() else ASCII_SHADES
        print(entropy_text(result.entropy_LH, ceiling, shades=shades))
    elif not config.model.has_attention_maps:
        print(f"entropy     not defined: model.mixer={config.model.mixer!r} has no softmax")
    if _REPORT.value:
        print(f"report      {write_report([workdir], epath.Path(workdir) / REPORT_DIR)}")


if __name__ == "__main__":
    run(main)
