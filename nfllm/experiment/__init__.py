"""Trains a grid of configs and compares the runs; finished runs are skipped.

    python -m nfllm.experiment configs/paper.py --scale minute --out experiments/minute

A grid is a Python file with `get_experiment(scale) -> Experiment`; `configs/paper.py` is one.
"""

from nfllm.experiment.grid import Entry, Experiment, Group, Variant

__all__ = ["Entry", "Experiment", "Group", "Variant"]
