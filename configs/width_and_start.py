"""Width and initial values alone: `configs/factors.py` mixes their effects with interactions.

    python -m nfllm.experiment configs/width_and_start.py --scale minute --out experiments/ws_minute

    scale   model                data                tokens a run   runs  time
    minute  1 layer              standard library    1.3 k             8  1 minute on 2 cores
    cpu     8 layers, width 64   installed packages  4.1 M            16  54 minutes on 2 cores
            or 128

In `configs/factors.py` the effect of the width cannot be told from depth x learning rate, nor from
initial values x steps with the opposite sign; that of initial values not from depth x batch, nor
from width x steps with the opposite sign. Here depth, batch, rate and steps stay fixed, so that
both effects and their interaction stand alone. Every cell has norm-free ReLU and GELU, and two
seeds (`minute`: one). Fixed before any result of this grid, and after those of the other.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

from ml_collections import ConfigDict

from configs.factors import FACTORS as ALL_FACTORS
from configs.factors import MODELS
from configs.paper import minute_base, small_base
from nfllm.experiment import Experiment, Group, Variant
from nfllm.experiment.factors import factor_sections

SCALES = ("minute", "cpu")

FACTORS = {
    **{name: ALL_FACTORS[name] for name in ("width", "init")},
    "width x init": "both or neither of the two, not one",
}


def design() -> dict[str, dict[str, int]]:
    """The level of each factor, +1 or -1, by cell."""
    cells = {}
    for width, init in itertools.product((-1, 1), repeat=2):
        levels = {"width": width, "init": init}
        name = "_".join(key for key, level in levels.items() if level > 0) or "none"
        cells[name] = levels
    return cells


def get_experiment(scale: str) -> Experiment:
    """The grid at one of `SCALES`."""
    return {"minute": _minute, "cpu": _cpu}[scale]()


def _minute() -> Experiment:
    base = minute_base()
    base.evaluation.every = base.telemetry.every = 5
    note = "Proves the path; its numbers mean nothing."
    return _experiment(note, base, (16, 32), (0,))


def _cpu() -> Experiment:
    base = small_base(num_layers=8, embed_dim=64, steps=8000, batch_size=4)
    base.data.dataset = "python_source"
    base.data.sources = "{site-packages}"
    base.evaluation.every = base.checkpoint.every = 2000
    base.evaluation.max_windows = 2048
    base.telemetry.every = 500
    return _experiment("Two factors in four cells, two seeds each.", base, (64, 128), (0, 1))


def _experiment(
    note: str, base: ConfigDict, widths: tuple[int, int], seeds: tuple[int, ...]
) -> Experiment:
    variants = {}
    for cell, levels in design().items():
        changes: dict[str, Any] = {
            "model.embed_dim": widths[levels["width"] > 0],
            "model.init_std_scaling": ("none", "width")[levels["init"] > 0],
            "model.normalization": "none",
        }
        for model in MODELS:
            variants[f"{cell}-{model}"] = Variant({**changes, "model.activation": model}, seeds)
    sections = partial(factor_sections, design=design(), factors=FACTORS, pair=MODELS)
    return Experiment(note, {"main": Group("Width and start", base, variants)}, sections=sections)
