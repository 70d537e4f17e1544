"""Normalization-free parts with their published start values, on the default model.

    python train.py --config configs/norm_free.py:derf_gpt2 --workdir runs/derf

The name after the colon is one of `PARTS`; without it, dyt. If you change a
key of the recipe, the run reports it with the published value. Hardware, time and data are those of
configs/default.py. Perplexity to expect: none is published or measured at this size.

    dyt, derf        0.5 at every site, the default of both papers' code
    dyt_7b ... 70b   LLaMA of DyT's authors (2503.10622): alpha by site, learned embedding gain
    dyt_gpt2         GPT-2 124M of Derf's authors, validation loss 2.97 to LayerNorm's 2.94
    derf_gpt2        the same with erf: 2.94
    dyt_overfitting  alpha 2 everywhere (lucky-verma/dyt-composition-study), on little data
    helu             ReLU whose gradient begins at -0.001, for small models (2411.10573)
    relu             no normalization and no point function: the baseline of the others
"""

from typing import Any

from ml_collections import ConfigDict

from configs.default import get_config as default_config
from nfllm.config import ConfigError, suggest
from nfllm.config.recipes import RECIPES


def _model(name: str) -> dict[str, Any]:
    """The values that a recipe sets in `model`."""
    keys = {key.partition(".")[2]: value for key, value in RECIPES[name].items()}
    return {key: value for key, value in keys.items() if value is not None}


_NO_NORM = {"final_normalization": "none"}
PARTS: dict[str, dict[str, Any]] = {
    "relu": _NO_NORM,
    **{name: _model(name) for name in RECIPES if name.startswith(("dyt", "derf"))},
    "helu": _NO_NORM | _model("helu"),
}


def get_config(name: str = "dyt") -> ConfigDict:
    """The default with one of `PARTS`."""
    if name not in PARTS:
        raise ConfigError(f"unknown part {name!r}; {suggest(name, PARTS)}")
    config = default_config()
    config.model.update(PARTS[name])
    if name in RECIPES:
        config.training.recipe = name
    return config
