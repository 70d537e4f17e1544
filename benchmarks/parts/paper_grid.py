"""The norm-free pair of configs/paper.py --scale gpu, one seed."""

from __future__ import annotations

import dataclasses

from configs.paper import get_experiment as paper
from configs.paper import paper_experiment
from nfllm.experiment import Experiment

SCALES = ("gpu",)
PAIR = ("sm+g", "sm+r")


def get_experiment(scale: str) -> Experiment:
    """GELU and ReLU without norms from the group `main` of the paper's grid, one seed."""
    whole = paper(scale)
    main = whole.groups["main"]
    variants = {name: dataclasses.replace(main.variants[name], seeds=(0,)) for name in PAIR}
    group = dataclasses.replace(main, title="The norm-free pair", variants=variants)
    return paper_experiment(whole.note, {"main": group}, conclusive=False)
