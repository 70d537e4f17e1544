"""python -m nfllm.freeze RUN OUT [--fold]"""

from __future__ import annotations

import argparse
import sys

from absl import logging

from nfllm.config.extensions import add_import_flag
from nfllm.config.paths import make_writable
from nfllm.console import escape_unprintable
from nfllm.convert.fold import fold
from nfllm.data.batches import Batch, evaluation_batches
from nfllm.measure.freeze import FrozenNorms, freeze_norms
from nfllm.run import Run, load_run, save_run
from nfllm.trainer.derived import new_directory


def main(arguments: list[str] | None = None) -> int:
    """Freezes the norms of a run, prints the loss that each costs, and writes the frozen run."""
    escape_unprintable()
    parser = argparse.ArgumentParser(
        prog="python -m nfllm.freeze",
        description="Replaces every LayerNorm's standard deviation by its mean over a split, "
        "prints the loss with each single norm frozen, and writes the frozen run to OUT.",
    )
    parser.add_argument("run", metavar="RUN", help="a run with LayerNorm")
    parser.add_argument("out", metavar="OUT", help="a new directory")
    parser.add_argument("--step", type=int, help="step of the checkpoint; default: the newest")
    parser.add_argument(
        "--split",
        choices=("validation", "train"),
        default="validation",
        help="split to measure on (validation)",
    )
    parser.add_argument(
        "--max_windows", type=int, default=512, help="maximum number of windows (512)"
    )
    parser.add_argument("--batch_size", type=int, default=32, help="windows per batch (32)")
    parser.add_argument(
        "--first_position", action="store_true", help="the first position has its own deviation"
    )
    parser.add_argument(
        "--fold", action="store_true", help="fold the frozen norms into the matrices"
    )
    add_import_flag(parser)
    options = parser.parse_args(arguments)
    logging.set_verbosity(logging.WARNING)  # Orbax logs every step of reading
    for name in ("max_windows", "batch_size"):
        if (value := getattr(options, name)) < 1:
            parser.error(f"--{name} {value} must be at least 1")
    try:
        out = new_directory(options.out)
        run = load_run(options.run, step=options.step)
        make_writable(out, "OUT")
        batches = _batches(run, options.split, options.batch_size, options.max_windows)
        frozen = freeze_norms(run, batches, first_position=options.first_position)
        result = fold(frozen.run) if options.fold else frozen.run
        print(_text(frozen))
        how = "frozen and folded" if options.fold else "frozen"
        print(f"written  {save_run(result, out, how=how, **_fields(frozen))}")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _batches(run: Run, split: str, batch_size: int, max_windows: int) -> list[Batch]:
    if split == "validation":
        return run.validation_batches(batch_size, max_windows=max_windows)
    dataset = run.dataset()
    found = evaluation_batches(
        dataset.train, batch_size, ignored_id=dataset.ignored_id, max_windows=max_windows
    )
    return list(found)


def _fields(frozen: FrozenNorms) -> dict[str, object]:
    """The fields of the event, which the report shows (`nfllm.report.removal_sections`)."""
    each = [
        {"site": site, "loss_nats": loss} | ({} if layer is None else {"layer": layer})
        for (site, layer), loss in frozen.each.items()
    ]
    losses = {"layernorm": frozen.loss_nats, "frozen": frozen.frozen_loss_nats}
    return {"num_windows": frozen.num_windows, "loss_nats": losses, "each": each}


def _text(frozen: FrozenNorms) -> str:
    whole = frozen.loss_nats
    assert whole is not None  # with_losses is True by default
    lines = [f"loss over {frozen.num_windows:,} windows: {whole:.4f} nats; with one norm frozen:"]
    for (site, layer), loss in frozen.each.items():
        name = site if layer is None else f"{site} {layer}"
        lines.append(f"  {name:<14} {loss:.4f}  {loss - whole:+.4f}")
    lines.append(f"with all frozen: {frozen.frozen_loss_nats:.4f} nats")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
