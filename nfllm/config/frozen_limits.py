"""The limits of frozen norms: their sites and their keys; part of `check_model`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nfllm.config.checks import ConfigError, between, needs, no_effect
from nfllm.config.names import FROZEN

if TYPE_CHECKING:
    from nfllm.config.keys import ModelConfig

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
        if getattr(model, key) == FROZEN:
            raise ConfigError(
                f"model.{key}={FROZEN!r} does not exist: a frozen norm holds the deviation of the "
                "residual stream before a branch or the head; choose another normalization, or "
                "'none'"
            )
    in_blocks = any(model.normalization_of(branch) == FROZEN for branch in model.branches)
    if in_blocks:
        needs(
            model,
            "model",
            {"norm_placement": "pre", "value_projection": "dense"},
            f"{FROZEN!r} in the blocks, which needs a matrix after each norm of a branch",
        )
    if in_blocks or model.final_normalization == FROZEN:
        return
    unused: dict[str, object] = {"frozen_first_position": False, "frozen_momentum": 0.9}
    remedy = f"set model.normalization to {FROZEN!r}"
    no_effect(model, "model", unused, "without a frozen norm", remedy)
