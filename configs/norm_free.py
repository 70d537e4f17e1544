"""Normalization-free parts with their published start values, on the default model.

    python train.py --config configs/norm_free.py:derf_gpt2 --workdir runs/derf

The name after the colon is one of `PARTS`; without it, dyt. Hardware, time and data are those of
configs/default.py. Perplexity to expect: none is published at this size, nor measured here yet.

    dyt, derf        0.5 at every site, the default of both papers' code
    dyt_7b ... 70b   LLaMA of DyT's authors (2503.10622): alpha by site, learned embedding gain
    dyt_gpt2         GPT-2 124M of Derf's authors, validation loss 2.97 to LayerNorm's 2.94
    derf_gpt2        the same with erf: 2.94
    dyt_overfitting  alpha 2 everywhere (lucky-verma/dyt-composition-study), on little data
    helu             ReLU whose gradient begins at -0.001, for small models (2411.10573)
    relu             no normalization and no point function: what the others are compared with
"""

from typing import Any

from ml_collections import ConfigDict

from configs.default import get_config as default_config
from nfllm.config import ConfigError, suggest


def _point_function(name: str, *alphas: float, gain: bool = False) -> dict[str, Any]:
    """`name` before attention and MLP and at the end, with the starts of alpha at these sites."""
    keys = ("dyt_alpha_attention", "dyt_alpha_mlp", "dyt_alpha_final")
    return {
        "normalization": name,
        "final_normalization": name,
        "embedding_scale": "learned" if gain else "none",
        **dict(zip(keys, alphas, strict=False)),
    }


PARTS: dict[str, dict[str, Any]] = {
    "relu": {"final_normalization": "none"},
    "dyt": _point_function("dyt"),
    "derf": _point_function("derf"),
    "dyt_7b": _point_function("dyt", 0.8, 0.2, 0.2, gain=True),
    "dyt_13b": _point_function("dyt", 0.6, 0.15, 0.15, gain=True),
    "dyt_70b": _point_function("dyt", 0.2, 0.05, 0.05, gain=True),
    "dyt_gpt2": _point_function("dyt", 1.0, 1.0, 1.0, gain=True),
    "derf_gpt2": _point_function("derf", 1.0, 1.0, 1.0, gain=True),
    "dyt_overfitting": _point_function("dyt", 2.0, 2.0, 2.0),
    "helu": {"final_normalization": "none", "activation": "helu", "helu_margin": 0.001},
}


def get_config(name: str = "dyt") -> ConfigDict:
    """The default with one of `PARTS`."""
    if name not in PARTS:
        raise ConfigError(f"unknown part {name!r}; {suggest(name, PARTS)}")
    config = default_config()
    config.model.update(PARTS[name])
    return config
