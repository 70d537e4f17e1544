"""Softmax-only networks and the entropy regularizer, as in arXiv 2410.13060 and 2501.03489.

    python -m nfllm.experiment configs/aero.py --scale minute --out experiments/aero_minute

    scale   model                data              tokens a run  runs  time
    minute  2 layers, width 32   standard library  15 k             9  a minute or two on 2 cores
    cpu     8 layers, width 64   standard library  4.1 M           27  66 minutes on 2 cores
    paper   GPT-2, 12 layers     CodeParrot        2.1 B            9  days of one GPU

Variants, by the papers' names: Sc learned scalars around the MLP, Fu its two matrices fused into
one, i the deepest half of the layers without an MLP, (t) learned temperatures. `ereg` is Algorithm
1 of arXiv 2501.03489 with its weight of 1e-5 and margin of 0.2, `ereg_released` what the released
code computes, whose weight is larger by the batch size and by T, and `ereg_fixed` has thresholds
that are not learned. Temperatures start at 0.01, as published; the start of thresholds and of
scalars is not published: 0.5 and 1 here. The time of `paper` is an estimate.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from ml_collections import ConfigDict

from configs.gpt2_codeparrot import get_config as gpt2_config
from configs.paper import minute_base, small_base
from nfllm.experiment import Experiment, Group, Variant
from nfllm.papers.aero import AERO_REFERENCE, aero_sections
from nfllm.papers.variants import AERO_VARIANTS, VARIANTS

SCALES = ("minute", "cpu", "paper")

WEIGHT = 1e-5


def get_experiment(scale: str) -> Experiment:
    """The grid at one of `SCALES`."""
    makers = {"minute": _minute, "cpu": _cpu, "paper": _paper}
    return makers[scale]()


def _minute() -> Experiment:
    base = minute_base()
    return _experiment(
        "Proves the path in a minute or two on 2 cores; its numbers mean nothing.",
        base,
        conclusive=False,
    )


def _cpu() -> Experiment:
    base = small_base(num_layers=8, embed_dim=64, steps=8000, batch_size=4)
    base.evaluation.max_windows = 1024
    base.telemetry.every = 500
    return _experiment("Small models, three seeds.", base, seeds=(0, 1, 2))


def _paper() -> Experiment:
    return _experiment(
        "The released recipe on CodeParrot: 2.1 B tokens a run, one seed, float16.",
        gpt2_config(),
        seeds=(1337,),
    )


def _experiment(
    note: str, base: ConfigDict, seeds: tuple[int, ...] = (0,), *, conclusive: bool = True
) -> Experiment:
    layers = base.model.num_layers
    return Experiment(
        note,
        {"main": Group("Softmax-only networks", base, _variants(base, seeds, layers // 2))},
        sections=partial(aero_sections, conclusive=conclusive),
        reference=AERO_REFERENCE,
    )


def _variants(base: ConfigDict, seeds: tuple[int, ...], pruned: int) -> dict[str, Variant]:
    linear, fused, tempered = (_model(AERO_VARIANTS[name]) for name in AERO_VARIANTS)
    tempered["model.softmax_temperature_init"] = 0.01
    regularized = {**tempered, "objective.entropy_weight": WEIGHT}
    micro_batch = base.training.batch_size // (base.training.gradient_accumulation or 1)
    released = {
        "objective.entropy_weight": WEIGHT * micro_batch,  # the code sums over sequences
        "objective.entropy_reduction": "row_sum",
        "objective.entropy_threshold_sharing": "first",
    }
    changes = {
        "sm+ln+g": _model(VARIANTS["sm+ln+g"]),
        "sm+ln+r": _model(VARIANTS["sm+ln+r"]),
        "sm+scffn": linear,
        "sm+scfuffn": fused,
        "sm+scfuffn_i": {**fused, "model.mlp_pruned_layers": pruned},
        "sm(t)+scfuffn": tempered,
        "ereg": regularized,
        "ereg_released": {**regularized, **released},
        "ereg_fixed": {**regularized, "objective.entropy_threshold_trainable": False},
    }
    return {name: Variant(keys, seeds) for name, keys in changes.items()}


def _model(keys: dict[str, Any]) -> dict[str, Any]:
    return {f"model.{key}": value for key, value in keys.items()}
