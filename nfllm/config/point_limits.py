"""The limits of the keys of point functions in place of normalizations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nfllm.config.checks import ConfigError, positive
from nfllm.config.names import POINT_FUNCTIONS

if TYPE_CHECKING:
    from nfllm.config.derived import Site
    from nfllm.config.keys import ModelConfig


def check_point_functions(model: ModelConfig) -> None:
    """Raises ConfigError for a key of a point function that the model does not have."""
    at = {site: model.normalization_at(site) in POINT_FUNCTIONS for site in model.sites}
    sites: dict[str, tuple[Site, ...]] = {
        "dyt_alpha_attention": ("attention",),
        "dyt_alpha_mlp": ("mlp",),
        "dyt_alpha_final": ("final",),
        "dyt_shift": model.sites,
    }
    for key, of in sites.items():
        value = getattr(model, key)
        if value is not None and not any(at.get(site, False) for site in of):
            where = ", ".join(of)
            raise ConfigError(
                f"model.{key}={value!r} has no effect: no normalization there ({where}) is a point "
                f"function; choose one of {', '.join(POINT_FUNCTIONS)}, or leave it unset"
            )
        if value is not None and key != "dyt_shift":
            positive(model, "model", key)
