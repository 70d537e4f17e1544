"""The limits of the keys that belong to some normalizations alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nfllm.config.checks import ConfigError, at_least, positive
from nfllm.config.names import POINT_FUNCTIONS

if TYPE_CHECKING:
    from nfllm.config.derived import Site
    from nfllm.config.keys import ModelConfig


def check_point_functions(model: ModelConfig) -> None:
    """Raises ConfigError for a key of a point function that the model does not have."""
    at = {site: model.normalization_at(site) in POINT_FUNCTIONS for site in model.sites}
    sites: dict[str, tuple[Site, ...]] = {
        key: tuple(site for site in model.sites if model.alpha_key(site) == key)
        for key in ("dyt_alpha_attention", "dyt_alpha_mlp", "dyt_alpha_final")
    }
    sites["dyt_shift"] = model.sites
    for key, of in sites.items():
        value = getattr(model, key)
        if value is not None and not any(at.get(site, False) for site in of):
            where = ", ".join(of) or key.rpartition("_")[2]
            raise ConfigError(
                f"model.{key}={value!r} has no effect: no normalization there ({where}) is a point "
                f"function; choose one of {', '.join(POINT_FUNCTIONS)}, or leave it unset"
            )
        if value is not None and key != "dyt_shift":
            positive(model, "model", key)


def check_groups(model: ModelConfig) -> None:
    """Raises ConfigError for groups that no normalization has, or that do not divide features."""
    groups = model.normalization_groups
    if groups is None:
        return
    at_least(model, "model", "normalization_groups", 1)
    sites = [site for site in model.sites if model.normalization_at(site) == "evonorm_s0"]
    if not sites:
        raise ConfigError(
            f"model.normalization_groups={groups} has no effect: no normalization is 'evonorm_s0'; "
            "choose it, or leave the groups unset"
        )
    for site in sites:
        if model.width_at(site) % groups:
            raise ConfigError(
                f"model.normalization_groups={groups} does not divide the {model.width_at(site)} "
                f"features of evonorm_s0 ({site}); choose a divisor"
            )
