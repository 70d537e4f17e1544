"""Trains a decoder: flags, to a config, to nfllm.training.loop.fit.

    python train.py
    python train.py --config configs/default.py --config.model.activation=gelu --workdir runs/gelu

The same command on the same --workdir goes on from the newest checkpoint.
"""

import sys
from pathlib import Path

from absl import app, flags, logging

from nfllm.config import Config, ConfigError
from nfllm.flags import check_no_arguments, define_config

_CONFIG = define_config()
_WORKDIR = flags.DEFINE_string("workdir", "runs/default", "The run directory.")


def main(arguments: list[str]) -> None:
    """Runs the configured training and prints how it ended."""
    check_no_arguments(arguments)
    try:
        config = Config.from_dict(_CONFIG.value)
        logging.set_verbosity(logging.WARNING)  # Orbax tells each step of a save
        sys.exit(_train(config, _WORKDIR.value))
    except ConfigError as error:
        sys.exit(f"error: {error}")


def _train(config: Config, workdir: str) -> int:
    # After the config is known to be sound: these imports take seconds.
    from nfllm.analysis import causal_entropy_ceiling
    from nfllm.report import write_report
    from nfllm.report.text import entropy_text
    from nfllm.rundir import REPORT_DIR, RunError
    from nfllm.training.loop import NonFiniteError, fit

    try:
        result = fit(config, workdir)
    except (RunError, NonFiniteError) as error:
        sys.exit(f"error: {error}")
    if result.interrupted:
        print(f"continue with the same command; {workdir} is at step {result.step}")
        return 128 + result.interrupted if result.interrupted.name == "SIGINT" else 0
    evaluation = result.evaluation
    assert evaluation is not None  # only an interrupted run has none
    print(
        f"\nevaluation  loss {evaluation.loss_nats:.4f} nats per token, perplexity "
        f"{evaluation.perplexity:.2f}, over {evaluation.num_targets:,} targets"
    )
    print(f"speed       {result.tokens_per_second:,.0f} tokens/s")
    if result.entropy_LH is not None:
        print(entropy_text(result.entropy_LH, causal_entropy_ceiling(config.model.context_length)))
    print(f"report      {write_report([workdir], Path(workdir) / REPORT_DIR)}")
    return 0


if __name__ == "__main__":
    app.run(main)
