"""The limits of keys that only some normalizations use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nfllm.config.checks import ConfigError, at_least, positive
from nfllm.config.names import EVONORM, POINT_FUNCTIONS

if TYPE_CHECKING:
    from nfllm.config.keys import ModelConfig


def check_point_functions(model: ModelConfig) -> None:
    """Raises ConfigError for keys of point functions at sites without a point function."""
    sites = [s for s in model.sites if model.normalization_at(s) in POINT_FUNCTIONS]
    branches = {site.partition("_")[0] for site in sites}
    for key in ("dyt_alpha_attention", "dyt_alpha_mlp", "dyt_alpha_final", "dyt_shift"):
        value = getattr(model, key)
        if value is None:
            continue
        if not branches if key == "dyt_shift" else key.rpartition("_")[2] not in branches:
            raise ConfigError(
                f"model.{key}={value!r} has no effect: no normalization there is a point function; "
                f"choose one of {', '.join(POINT_FUNCTIONS)}, or leave model.{key} unset"
            )
        if key != "dyt_shift":
            positive(model, "model", key)


def check_groups(model: ModelConfig) -> None:
    """Raises ConfigError for groups without an EvoNorm, or that do not divide its features."""
    groups = model.normalization_groups
    if groups is None:
        return
    at_least(model, "model", "normalization_groups", 1)
    widths: dict[str, int] = {
        site: model.width_at(site)
        for site in model.sites
        if model.normalization_at(site) == EVONORM
    }
    if model.activation == EVONORM:
        widths["activation"] = model.mlp_width
    if not widths:
        raise ConfigError(
            f"model.normalization_groups={groups} has no effect: neither a normalization nor the "
            f"activation is {EVONORM!r}; set one of them to it, or leave the groups unset"
        )
    for site, width in widths.items():
        if width % groups:
            raise ConfigError(
                f"model.normalization_groups={groups} does not divide the {width} features of "
                f"{EVONORM} ({site}); choose a divisor"
            )
