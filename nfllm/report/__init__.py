"""Run directories in; pictures, tables and one self-contained HTML page out.

    python -m nfllm.report RUN [RUN ...] --out DIR

Only the run directory is read; `--importance` and `--steps` read the run's data as well.
matplotlib is imported when the first figure is drawn.
"""

import importlib
from collections.abc import Sequence
from typing import Any

from etils import epath

from nfllm.report.reference import Reference
from nfllm.report.text import ASCII_SHADES, UNICODE_SHADES, entropy_text

# Loaded on first use: they need JAX and matplotlib.
_PICTURES = {
    "attention_figure": "nfllm.report.attention",
    "entropy_by_position_figure": "nfllm.report.attention",
    "importance_figure": "nfllm.report.importance",
    "token_labels": "nfllm.report.attention",
}

__all__ = [
    "ASCII_SHADES",
    "UNICODE_SHADES",
    "attention_figure",
    "entropy_by_position_figure",
    "entropy_text",
    "importance_figure",
    "token_labels",
    "write_report",
]


def write_report(
    runs: Sequence[epath.PathLike],
    out: epath.PathLike,
    reference: Reference | None = None,
    *,
    importance: bool = False,
    steps: bool = False,
    private_cost: bool = False,
) -> epath.Path:
    """Writes the report of one run, or of several side by side.

    What is missing or damaged in a run directory is left out; the page lists it.

    Args:
      runs: run directories.
      out: directory to write `index.html`, `figures/*.png`, `figures/*.pdf` and `tables/*.csv`
        into; made where it does not exist. Files of an earlier report are replaced.
      reference: published numbers to show beside the runs, such as
        `nfllm.papers.published.REFERENCE`; None for none.
      importance: also load each run's newest checkpoint, and measure on its validation split how
        much the loss rises without each head, beside the head's entropy.
      steps: also load the checkpoints that each run has kept, at most twelve spread over training,
        and draw the entropy of every head at each.
      private_cost: also plot perplexity against what private inference of each model costs.

    Returns:
      The path of `index.html`, which loads no other file, from the network or the disk.

    Raises:
      nfllm.rundir.RunError: a path is not a directory, or is named twice; with `importance` or
        `steps`: a run has no checkpoint that can be read, or its data is missing.

    Example:
      >>> str(write_report(["runs/relu", "runs/gelu"], "comparison"))
      'comparison/index.html'
    """
    from nfllm.report.write import write

    requested = {"importance": importance, "steps": steps, "private_cost": private_cost}
    return write(runs, out, reference, **requested)


def __getattr__(name: str) -> Any:
    if name not in _PICTURES:
        raise AttributeError(f"module 'nfllm.report' has no attribute {name!r}")
    return getattr(importlib.import_module(_PICTURES[name]), name)
