"""The four main models of configs/paper.py at GPT-2's size, for as many steps as fit the budget."""

from __future__ import annotations

import dataclasses

from configs.paper import FOUR, paper_experiment
from configs.paper import get_experiment as paper
from nfllm.experiment import Experiment

SCALES = ("gpu",)


def get_experiment(scale: str) -> Experiment:
    """The group `main` of the paper's grid, one seed, without its controls."""
    whole = paper(scale)
    main = whole.groups["main"]
    variants = {name: dataclasses.replace(main.variants[name], seeds=(0,)) for name in FOUR}
    group = dataclasses.replace(main, title="The four main models", variants=variants)
    note = "GPT-2's size on the source of installed packages, for the time that was left."
    return paper_experiment(note, {"main": group}, conclusive=False)
