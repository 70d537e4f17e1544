"""The limits of frozen norms: their sites and their keys; part of `check_model`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nfllm.config.checks import ConfigError, between, no_effect

if TYPE_CHECKING:
    from nfllm.config.keys import ModelConfig

_FROZEN = "frozen_layernorm"
_ELSEWHERE = (
    "qk_normalization",
    "embedding_normalization",
    "attention_output_normalization",
    "mlp_hidden_normalization",
)


def check_frozen(model: ModelConfig) -> None:
    """Raises ConfigError for a frozen norm at a wrong site, or for its keys without such a norm."""
    between(model, "model", "frozen_momentum", 0.0, 1.0)
    for key in _ELSEWHERE:
        if getattr(model, key) == _FROZEN:
            raise ConfigError(
                f"model.{key}={_FROZEN!r} does not exist: a frozen norm holds the deviation of the "
                "residual stream before a branch or the head; choose another normalization, or "
                "'none'"
            )
    in_blocks = any(model.normalization_of(branch) == _FROZEN for branch in model.branches)
    if in_blocks:
        for key, value in (("norm_placement", "pre"), ("value_projection", "dense")):
            if (found := getattr(model, key)) != value:
                raise ConfigError(
                    f"model.{key}={found!r} does not work with {_FROZEN!r} in the blocks, which "
                    f"needs a matrix after each norm of a branch; set model.{key} to {value!r}"
                )
    if in_blocks or model.final_normalization == _FROZEN:
        return
    unused: dict[str, object] = {"frozen_first_position": False, "frozen_momentum": 0.9}
    remedy = f"set model.normalization to {_FROZEN!r}"
    no_effect(model, "model", unused, "without a frozen norm", remedy)
