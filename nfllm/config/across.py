"""Limits that concern keys of several sections."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nfllm.config.checks import ConfigError
from nfllm.config.names import FROZEN, FUSED_ATTENTION
from nfllm.config.removal import removals

if TYPE_CHECKING:
    from nfllm.config.whole import Config

# Keys that need attention maps: why, and what else than another attention would help.
_OF_MAPS = {
    "telemetry.entropy_every_step": (
        "needs attention logits, which {} does not give",
        ", or probe with telemetry.every instead",
    ),
    "optimizer.qk_clip": ("needs attention logits, which {} does not give", ""),
    "removal.scale_weight": (
        "is computed by a step that forms attention maps, which {} does not",
        "",
    ),
    "objective.entropy_weight": (
        "needs the rows of the attention maps, which {} does not keep",
        "",
    ),
}


def check_across(config: Config) -> None:
    """Raises ConfigError for keys whose values do not fit together."""
    _check_warmup(config)
    _check_qk_clip(config)
    _check_mixer(config)
    _check_fused_attention(config)
    _check_removal(config)


def _check_warmup(config: Config) -> None:
    warmup, steps = config.optimizer.warmup_steps, config.training.steps
    if config.optimizer.schedule != "constant" and warmup and warmup >= steps:
        raise ConfigError(
            f"optimizer.warmup_steps={warmup} leaves no step of training.steps={steps} to decay "
            "in; shorten the warmup, or use optimizer.schedule='constant'"
        )


def _check_qk_clip(config: Config) -> None:
    limit = config.optimizer.qk_clip
    for key in ("qk_normalization", "weight_reparametrization"):
        value = getattr(config.model, key)
        if limit is not None and value != "none":
            raise ConfigError(
                f"optimizer.qk_clip={limit} has no effect with model.{key}={value!r}, which makes "
                "logits independent of the size of query and key matrices; leave one of them out"
            )
    transform = config.model.attention_transform
    if limit is not None and transform != "none":
        raise ConfigError(
            f"optimizer.qk_clip={limit} does not work with "
            f"model.attention_transform={transform!r}: it measures logits after the transform, to "
            "which smaller queries and keys do not carry over in proportion; leave one out"
        )


def _check_fused_attention(config: Config) -> None:
    chosen = config.model.attention_implementation
    if chosen not in FUSED_ATTENTION:
        return
    for name, (why, more) in _OF_MAPS.items():
        section, _, key = name.partition(".")
        if found := getattr(getattr(config, section), key):
            needs = why.format(f"model.attention_implementation={chosen!r}")
            raise ConfigError(f"{name}={found} {needs}; use 'auto', 'explicit' or 'blocks'{more}")


def _check_mixer(config: Config) -> None:
    if config.model.has_attention_maps:
        return
    neutral: dict[str, object] = {
        "telemetry.entropy_every_step": False,
        "optimizer.qk_clip": None,
        "objective.entropy_weight": 0.0,
    }
    for name, value in neutral.items():
        section, _, key = name.partition(".")
        if (found := getattr(getattr(config, section), key)) != value:
            raise ConfigError(
                f"{name}={found!r} does not work with model.mixer={config.model.mixer!r}, which "
                f"has no attention logits; set {name} to {value!r}, or model.mixer to 'softmax'"
            )


def _check_removal(config: Config) -> None:
    model, removal = config.model, config.removal
    if removal.scale_weight and model.final_normalization != FROZEN:
        raise ConfigError(
            f"removal.scale_weight={removal.scale_weight} needs the deviation that a frozen final "
            f"norm measures, but model.final_normalization={model.final_normalization!r}; set that "
            f"key to {FROZEN!r}, or the weight to 0"
        )
    if removal.start is None:
        return
    last = sorted(removals(model, removal), key=lambda r: r.end(removal.taper_steps))[-1]
    end = last.end(removal.taper_steps)
    taper_steps = end - last.step
    if end >= config.training.steps:
        taper = f" in {taper_steps} steps" if taper_steps else ""
        raise ConfigError(
            f"removal.start={removal.start} with removal.gap={removal.gap} removes {last}{taper} "
            f"at step {end}, but training.steps={config.training.steps}; start earlier, shorten "
            "the gap, or train longer, so that some steps run without norms"
        )
