"""The step at which each norm is removed, by the section `removal`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

from nfllm.config.checks import ConfigError, suggest
from nfllm.config.derived import Branch, Site
from nfllm.config.names import FROZEN

if TYPE_CHECKING:
    from nfllm.config.keys import ModelConfig, RemovalConfig
    from nfllm.config.whole import Config

BLOCK_SITES = ("mlp", "query_key", "value")
"""Sites of every layer: the input of the MLP, of queries and keys, and of values."""

SITES = (*BLOCK_SITES, "final", "first_position")


class Removal(NamedTuple):
    """One norm, and the step at which it is removed.

    From batch `step` on, counted from 0, the model runs without the norm; with `taper_steps`, its
    removal starts there. `layer` is None for sites of the whole model.
    """

    step: int
    site: str
    layer: int | None

    def end(self, taper_steps: int) -> int:
        """The first step without the norm; the first position joins the others at once."""
        return self.step if self.site == "first_position" else self.step + taper_steps

    def __str__(self) -> str:
        where = "" if self.layer is None else f" of layer {self.layer}"
        return f"{self.site}{where}"


def read_order(removal: RemovalConfig) -> list[tuple[str, int]]:
    """The sites of `removal.order`, each with its gap in steps.

    Raises:
      ConfigError: a site is unknown or named twice, or a gap is not a positive integer.
    """
    found: list[tuple[str, int]] = []
    for part in removal.order.split(","):
        site, separator, gap = (piece.strip() for piece in part.partition(":"))
        if site not in SITES:
            raise ConfigError(
                f"removal.order={removal.order!r} has the unknown site {site!r}; "
                f"{suggest(site, SITES)}"
            )
        if separator and (not gap.isdecimal() or int(gap) < 1):
            raise ConfigError(
                f"removal.order={removal.order!r}: the gap {gap!r} of {site} must be a whole "
                "number of steps, at least 1, as in value:3"
            )
        if site in dict(found):
            raise ConfigError(f"removal.order={removal.order!r} names {site} twice; name it once")
        found.append((site, int(gap) if separator else removal.gap))
    return found


def removals(model: ModelConfig, removal: RemovalConfig) -> tuple[Removal, ...]:
    """All removals in their order; none if `removal.start` is None.

    Raises:
      ConfigError: the model has no frozen_layernorm at a site of the order.
    """
    if removal.start is None:
        return ()
    found, step = [], removal.start
    for site, gap in read_order(removal):
        for layer in _layers(model, removal, site):
            found.append(Removal(step, site, layer))
            step += gap
    return tuple(found)


def model_at_end(config: Config) -> ModelConfig:
    """The model with which a run ends, in the names of a model that has no gates.

    A frozen norm that `removal.order` leaves out is a LayerNorm to the end. A first position that
    has joined the others has no deviation of its own.
    """
    model = config.model
    if config.removal.start is None:
        return model
    removed = {site for site, _ in read_order(config.removal)}
    parts: dict[Site, set[str]] = {"attention": {"query_key", "value"}, "mlp": {"mlp"}}
    parts["final"] = {"final"}
    frozen = {site for site in parts if model.normalization_at(site) == FROZEN}
    kept = {site for site in frozen if not parts[site] <= removed}
    changes: dict[str, Any] = {f"{site}_normalization": "layernorm" for site in kept}
    if kept == frozen:  # then the keys of frozen norms have no effect
        changes["frozen_momentum"] = type(model).frozen_momentum
    if kept == frozen or "first_position" in removed:
        changes["frozen_first_position"] = False
    return dataclasses.replace(model, **changes)


def _layers(model: ModelConfig, removal: RemovalConfig, site: str) -> list[int | None]:
    branch: Branch = "mlp" if site == "mlp" else "attention"
    own = f"{branch}_normalization"
    key = "normalization" if getattr(model, own) is None else own
    value, needed = model.normalization_at(branch), FROZEN
    if site == "final":
        key, value = "final_normalization", model.final_normalization
    elif site == "first_position":
        key, value, needed = "frozen_first_position", str(model.frozen_first_position), "True"
    count = model.num_mlp_layers if site == "mlp" else model.num_layers
    if value != needed or not count:
        why = f"model.{key}={value}" if value != needed else f"model.mlp={model.mlp}"
        raise ConfigError(
            f"removal.start={removal.start} removes the norm {site}, which removal.order="
            f"{removal.order!r} names and this model does not have ({why}); set model.{key} to "
            f"{needed}, take {site} out of the order, or leave removal.start at None"
        )
    return list(range(count)) if site in BLOCK_SITES else [None]
