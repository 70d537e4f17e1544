"""Norm-free recipes of nfllm beside the usual decoders, at one small size.

    python -m nfllm.experiment configs/recipes.py --scale minute --out experiments/recipes_minute

    scale   model               data              tokens a run  runs  time
    minute  2 layers, width 32  standard library  15 k            28  five minutes on 2 cores
    cpu     8 layers, width 64  standard library  1.5 M           84  84 minutes on 2 cores

The list was fixed before any of its results was seen. All variants share sizes, data, order of
data, learning rate and schedule; none was tuned. Where a paper gives start values they are taken,
else those of the keys. Without normalization the activation is ReLU, since that is the better one
(arXiv 2410.09637); the final LayerNorm stays except where a recipe replaces it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from configs.norm_free import PARTS
from configs.paper import minute_base, small_base
from nfllm.experiment import Experiment, Group, Variant
from nfllm.experiment.measured import GroupResults
from nfllm.experiment.sections import comparison_sections
from nfllm.experiment.speed import saturation_sections, speed_sections
from nfllm.report.page import Section

SCALES = ("minute", "cpu")

_FREE = {"normalization": "none", "activation": "relu"}
_PRE_LN = {"normalization": "layernorm", "activation": "gelu"}

RECIPES: dict[str, dict[str, Any]] = {
    "ln_gelu": _PRE_LN,
    "ln_relu": {**_PRE_LN, "activation": "relu"},
    "rmsnorm_silu": {"normalization": "rmsnorm", "activation": "silu"},
    "peri_ln": {**_PRE_LN, "norm_placement": "peri"},
    "post_ln": {**_PRE_LN, "norm_placement": "post"},
    "normformer": {
        **_PRE_LN,
        "attention_output_normalization": "layernorm",
        "mlp_hidden_normalization": "layernorm",
        "head_gains": True,
        "mlp_skip_gains": True,
    },
    "evonorm_s0": {"normalization": "evonorm_s0", "activation": "gelu"},
    "dyt": {**PARTS["dyt_gpt2"], "activation": "gelu"},
    "derf": {**PARTS["derf_gpt2"], "activation": "gelu"},
    "free_gelu": {**_FREE, "activation": "gelu"},
    "free_relu": _FREE,
    "free_leaky": {**_FREE, "activation": "leaky_relu", "negative_slope": 0.1},
    "free_learned_slope": {**_FREE, "activation": "learnable_leaky_relu"},
    "free_helu": {**_FREE, "activation": "helu", "helu_margin": 0.001},
    "free_qk_norm": {**_FREE, "qk_normalization": "rmsnorm"},
    "op_block": {
        **_FREE,
        "qk_normalization": "rmsnorm",
        "attention_branch_scale": 0.2,
        "mlp_branch_scale": 0.2,
    },
    "learned_branches": {**_FREE, "branch_scaling": "learned"},
    "rezero": {
        **_FREE,
        "branch_scaling": "learned",
        "attention_branch_scale": 0.0,
        "mlp_branch_scale": 0.0,
    },
    "depth_init": {**_FREE, "residual_init": "depth"},
    "weight_norm": {**_FREE, "mlp_weight_norm": "weight_input"},
    "hypersphere": {**_FREE, "mlp_weight_norm": "hypersphere"},
    "spectral": {**_FREE, "mlp_weight_norm": "spectral"},
    "sigma_reparam": {**_FREE, "weight_reparametrization": "sigma"},
    "shaped_attention": {**_FREE, "attention_shaping": "shaped"},
    "temperature": {**_FREE, "softmax_temperature": "head"},
    "scaled_mlp": {**_FREE, "mlp_scaling": "learned"},
}
"""The models, as keys of `model`."""

OF_TRAINING: dict[str, dict[str, Any]] = {
    "free_muon": {"optimizer.variant": "muon"},
    "free_entropy_regularizer": {"objective.entropy_weight": 1e-5},
}
"""What changes the training of `free_relu`, as keys of a config."""


def get_experiment(scale: str) -> Experiment:
    """The grid at one of `SCALES`."""
    return {"minute": _minute, "cpu": _cpu}[scale]()


def _minute() -> Experiment:
    base = minute_base()
    return _experiment("Proves the path; its numbers mean nothing.", base, seeds=(0,))


def _cpu() -> Experiment:
    base = small_base(num_layers=8, embed_dim=64, steps=3000, batch_size=4)
    base.evaluation.max_windows = 1024
    base.telemetry.every = 500
    return _experiment("Norm-free recipes at one small size, three seeds.", base, seeds=(0, 1, 2))


def _experiment(note: str, base: ConfigDict, seeds: tuple[int, ...]) -> Experiment:
    models = {
        name: {f"model.{key}": value for key, value in keys.items()}
        for name, keys in RECIPES.items()
    }
    trained = {name: {**models["free_relu"], **keys} for name, keys in OF_TRAINING.items()}
    variants = {name: Variant(keys, seeds) for name, keys in {**models, **trained}.items()}
    return Experiment(
        note,
        {"main": Group("Recipes", base, variants)},
        sections=_sections,
        linear_replacement=True,
    )


def _sections(groups: Sequence[GroupResults]) -> Iterator[Section]:
    yield from comparison_sections(groups)
    yield from saturation_sections(groups)
    yield from speed_sections(groups)
