"""The norm-free pair of configs/paper.py at GPT-2's size, for as many steps as fit the budget."""

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
    note = "GPT-2's size on the source of installed packages, for the time that was left."
    return paper_experiment(note, {"main": group}, conclusive=False)
