"""Trains a decoder: flags, to a config, to nfllm.training.loop.fit.

    python train.py
    python train.py --config configs/default.py --config.model.activation=gelu --workdir runs/gelu

The same command on the same --workdir goes on from the newest checkpoint.
"""

import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from nfllm.config import Config, ConfigError

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    str(Path(__file__).parent / "configs" / "default.py"),
    "The configuration file; --config.SECTION.KEY=VALUE changes one of its keys.",
)
_WORKDIR = flags.DEFINE_string("workdir", "runs/default", "The run directory.")


def main(arguments: list[str]) -> None:
    """Runs the configured training and prints how it ended."""
    if len(arguments) > 1:
        raise app.UsageError(f"unexpected argument {arguments[1]!r}; options begin with --")
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
