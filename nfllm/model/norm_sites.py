"""The norms of a decoder that can be frozen, and where they are in its parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from nfllm.config import ModelConfig
from nfllm.config.derived import Site
from nfllm.config.names import FROZEN
from nfllm.model.frozen_norm import QUERY_KEY, VALUE
from nfllm.model.layers import split_layers
from nfllm.model.parameters import Params, Variables

Place = tuple[str, int | None]
"""A site (`mlp`, `query_key`, `value`, `final`) and its layer; None for the final norm."""

SITES: tuple[Site, ...] = ("attention", "mlp", "final")
"""Sites of the norms that can be frozen."""

_SITES_OF: Mapping[str, tuple[Site, ...]] = {
    "normalization": ("attention", "mlp"),
    "attention_normalization": ("attention",),
    "mlp_normalization": ("mlp",),
    "final_normalization": ("final",),
}
KEYS = tuple(_SITES_OF)
"""Keys that name these norms."""

_NORMS = {
    "mlp": ("mlp_norm", 0),
    "query_key": ("attention_norm", QUERY_KEY),
    "value": ("attention_norm", VALUE),
}
"""For each site, the norm in a block and the index of the site's path through it."""


def norm_names(config: ModelConfig) -> dict[Site, str]:
    """The normalization at each of `SITES`."""
    return {site: config.normalization_at(site) for site in SITES}


def keys_of(config: ModelConfig, name: str) -> list[str]:
    """Those of `KEYS` that have the value `name` and choose a norm at one of their `SITES`."""
    at = norm_names(config)
    return [
        key
        for key, sites in _SITES_OF.items()
        if getattr(config, key) == name and name in {at[site] for site in sites}
    ]


def frozen_places(config: ModelConfig) -> list[Place]:
    """Every norm of a model that is or can be frozen, in the order of `removal.order`."""
    found: list[Place] = []
    if config.normalization_at("mlp") == FROZEN:
        found += [("mlp", layer) for layer in range(config.num_mlp_layers)]
    if config.normalization_at("attention") == FROZEN:
        for site in ("query_key", "value"):
            found += [(site, layer) for layer in range(config.num_layers)]
    if config.final_normalization == FROZEN:
        found.append(("final", None))
    return found


def at_places(
    config: ModelConfig, values: Mapping[Place, ArrayLike], default: ArrayLike
) -> Variables:
    """A value for every norm, as a tree like the parameters: [L, P] for a stack, [P] for the last.

    P is the number of paths of a norm; `default` is for places without a value.
    """
    blocks = {
        "attention_norm": np.full((config.num_layers, 2), default),
        "mlp_norm": np.full((config.num_mlp_layers, 1), default),
    }
    for (site, layer), value in values.items():
        if site in _NORMS:
            norm, path = _NORMS[site]
            blocks[norm][layer, path] = value
    sites: dict[str, Site] = {"attention_norm": "attention", "mlp_norm": "mlp"}
    kept = {name: x for name, x in blocks.items() if config.normalization_at(sites[name]) == FROZEN}
    tree: Variables = {}
    for stack, norms in split_layers(config, kept).items():
        if own := {name: value for name, value in norms.items() if len(value)}:
            tree[stack] = own
    if config.final_normalization == FROZEN:
        tree["final_norm"] = np.full(1, values.get(("final", None), default))
    return tree


def of_norms(config: ModelConfig, params: Params, name: str) -> Variables:
    """The parameter `name` of every norm, as a tree like that of `at_places`."""

    def pick(params: Any, tree: Any) -> Any:
        if not isinstance(tree, Mapping):
            return np.asarray(params[name])
        return {key: pick(params[key], value) for key, value in tree.items()}

    found: dict[str, Any] = pick(params, at_places(config, {}, 0))
    return found


def map_norms(change: Callable[..., Params], params: Params, *trees: Variables) -> Params:
    """The parameters, with every norm of the trees replaced by `change(norm, *values)`."""
    if not isinstance(trees[0], Mapping):
        return change(params, *trees)
    changed = {
        name: map_norms(change, params[name], *(tree[name] for tree in trees)) for name in trees[0]
    }
    return {**params, **changed}
