"""Six factors that may decide whether norm-free GELU's handicap lasts: two levels, eight cells.

    python -m nfllm.experiment configs/factors.py --scale minute --out experiments/factors_minute

    scale   model                     data                tokens a run   runs  time
    minute  1 or 2 layers             standard library    1.3 to 5.1 k     16  3 minutes on 2 cores
    cpu     8 or 16 layers, width 64  installed packages  4.1 to 65.5 M    32  15 h on 2 cores
            or 128

Each factor has two levels, +1 (the words in `FACTORS`) and -1. The cells are all eight combinations
of depth, width and batch; the other levels are products of these: learning rate depth x width,
initial values depth x batch, steps - depth x width x batch, so that the largest model with the
largest batch trains for the fewest steps. Then no main effect can be mistaken for another, but each
is mixed with interactions of two other factors. If an effect surprises, the eight cells with all
levels reversed (fold-over) tell the two apart. Every cell has norm-free ReLU and GELU, and two
seeds (`minute`: one). The design was fixed before any result was seen. Runs of more tokens than the
corpus has, about 49 M, read some of them more than once.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

from ml_collections import ConfigDict

from configs.paper import minute_base, small_base
from nfllm.experiment import Experiment, Group, Variant
from nfllm.experiment.factors import factor_sections

SCALES = ("minute", "cpu")

FACTORS = {
    "depth": "16 layers, not 8",
    "width": "width 128, not 64",
    "batch": "16 sequences a step, not 4",
    "learning_rate": "learning rate 1e-3, not 3e-4",
    "steps": "32,000 steps, not 8,000",
    "init": "matrices start at 0.02 sqrt(768 / width), not at 0.02",
}

MODELS = ("gelu", "relu")


def design() -> dict[str, dict[str, int]]:
    """The level of each factor, +1 or -1, by cell."""
    cells = {}
    for depth, width, batch in itertools.product((-1, 1), repeat=3):
        levels = {"depth": depth, "width": width, "batch": batch}
        levels |= {"learning_rate": depth * width, "init": depth * batch}
        levels["steps"] = -depth * width * batch
        name = "_".join(key for key, level in levels.items() if level > 0) or "none"
        cells[name] = levels
    return cells


def get_experiment(scale: str) -> Experiment:
    """The grid at one of `SCALES`."""
    return {"minute": _minute, "cpu": _cpu}[scale]()


def _minute() -> Experiment:
    base = minute_base()
    base.evaluation.every = base.telemetry.every = 5
    values = {
        "model.num_layers": (1, 2),
        "model.embed_dim": (16, 32),
        "training.batch_size": (2, 4),
        "optimizer.learning_rate": (3e-4, 1e-3),
        "training.steps": (10, 20),
        "model.init_std_scaling": ("none", "width"),
    }
    return _experiment("Proves the path; its numbers mean nothing.", base, values, (0,))


def _cpu() -> Experiment:
    base = small_base(num_layers=8, embed_dim=64, steps=32_000, batch_size=4)
    base.data.dataset = "python_source"
    base.data.sources = "{site-packages}"
    base.evaluation.every = base.checkpoint.every = 2000
    base.evaluation.max_windows = 2048
    base.telemetry.every = 500
    values = {
        "model.num_layers": (8, 16),
        "model.embed_dim": (64, 128),
        "training.batch_size": (4, 16),
        "optimizer.learning_rate": (3e-4, 1e-3),
        "training.steps": (8000, 32_000),
        "model.init_std_scaling": ("none", "width"),
    }
    return _experiment("Six factors in eight cells, two seeds each.", base, values, (0, 1))


def _experiment(
    note: str, base: ConfigDict, values: dict[str, tuple[Any, Any]], seeds: tuple[int, ...]
) -> Experiment:
    variants = {}
    for cell, levels in design().items():
        changes = {
            key: values[key][level > 0]
            for key, level in zip(values, (levels[name] for name in FACTORS), strict=True)
        }
        for model in MODELS:
            parts = {"model.normalization": "none", "model.activation": model}
            variants[f"{cell}-{model}"] = Variant({**changes, **parts}, seeds)
    sections = partial(factor_sections, design=design(), factors=FACTORS, pair=MODELS)
    return Experiment(note, {"main": Group("Six factors", base, variants)}, sections=sections)
