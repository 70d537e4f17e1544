"""Published norm-free recipes by name, and the keys in which a config differs from its recipe.

`training.recipe` names the recipe that a run should follow. It sets no key: the run, its report and
the page of its experiment list the keys of the recipe whose values differ from the published ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nfllm.config.checks import Value

if TYPE_CHECKING:
    from nfllm.config.whole import Config

Recipe = dict[str, Value]
"""The keys that a recipe states, and their published values."""


def _point_function(name: str, *alphas: float, gain: bool = False) -> Recipe:
    """`name` before attention, MLP and head, with the start values of alpha at these sites."""
    sites = ("attention", "mlp", "final")
    return {
        "model.normalization": name,
        "model.final_normalization": name,
        "model.embedding_scale": "learned" if gain else "none",
        "model.dyt_shift": None,
        **{f"model.dyt_alpha_{site}": alpha for site, alpha in zip(sites, alphas, strict=True)},
    }


RECIPES: dict[str, Recipe] = {
    "dyt": _point_function("dyt", 0.5, 0.5, 0.5),
    "derf": _point_function("derf", 0.5, 0.5, 0.5),
    "dyt_7b": _point_function("dyt", 0.8, 0.2, 0.2, gain=True),
    "dyt_13b": _point_function("dyt", 0.6, 0.15, 0.15, gain=True),
    "dyt_70b": _point_function("dyt", 0.2, 0.05, 0.05, gain=True),
    "dyt_gpt2": _point_function("dyt", 1.0, 1.0, 1.0, gain=True),
    "derf_gpt2": _point_function("derf", 1.0, 1.0, 1.0, gain=True),
    "dyt_overfitting": _point_function("dyt", 2.0, 2.0, 2.0),
    "helu": {"model.activation": "helu", "model.helu_margin": 0.001},
    "op_block": {
        "model.normalization": "none",
        "model.qk_normalization": "rmsnorm",
        "model.attention_branch_scale": 0.2,
        "model.mlp_branch_scale": 0.2,
        "model.branch_scaling": "fixed",
    },
    "aero": {
        "model.normalization": "none",
        "model.activation": "identity",
        "model.mlp": "fused",
        "model.mlp_scaling": "learned",
        "model.softmax_temperature": "head_position",
        "model.softmax_temperature_init": 0.01,
        "objective.entropy_weight": 1e-5,
        "objective.entropy_margin": 0.2,
        "objective.entropy_threshold_trainable": True,
    },
}
"""DyT (2503.10622) and Derf with start values of alpha, HeLU for small models (2411.10573), the OP
block (2405.19279), and the softmax-only network on CodeParrot (2501.03489)."""


def recipe_changes(config: Config) -> dict[str, tuple[Value, Value]]:
    """Keys in which a config differs from its recipe: `{"section.key": (published, here)}`."""
    values = config.to_dict()
    changed = {}
    for name, published in RECIPES.get(config.training.recipe or "", {}).items():
        section, _, key = name.partition(".")
        if (here := values[section][key]) != published:
            changed[name] = (published, here)
    return changed


def recipe_note(config: Config) -> str:
    """A run's description of its recipe, "recipe helu as published"; empty if it has none."""
    name = config.training.recipe
    if name is None:
        return ""
    changed = recipe_changes(config)
    if not changed:
        return f"recipe {name} as published"
    listed = [f"{key}={here!r} (published: {old!r})" for key, (old, here) in changed.items()]
    return f"recipe {name} changed: {', '.join(listed)}"
