"""Sites of Flax modules, linen and nnx, from the arrays that they sow."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax import nnx, traverse_util
from jax.typing import ArrayLike

from nfllm.config import suggest
from nfllm.measure.foreign.streaming import SitesOf
from nfllm.measure.sites import AXES, LOGITS
from nfllm.model.parameters import Variables

Patterns = Mapping[str, str | Sequence[str]]
"""From a site to the paths where its layers are sown: a pattern such as
`"block_*/attention/weights"`, or several in order (for a residual stream, `["block_*/residual",
"residual"]`). A `*` does not extend over a `/`. Layers are ordered by the numbers in their paths;
an array that is sown inside `nn.scan` has all layers already."""


def from_linen(
    module: nn.Module,
    variables: Variables,
    sites: Patterns,
    *,
    collection: str = "intermediates",
    **arguments: Any,
) -> SitesOf:
    """The sites of a linen module that maps token ids [B, T] to logits, for `foreign.analyze`.

    The outputs of submodules can be used as well: that of the submodule `mlp` is at `mlp/__call__`,
    as with Flax's `capture_intermediates`.

    Args:
      module: the module.
      variables: `{"params": ...}`, and any other collections that the module reads.
      sites: where to find each site.
      collection: the collection that the module sows into.
      **arguments: arguments of its call besides token ids, such as `deterministic=True`.

    Returns:
      The function from token ids to sites, including `logits`.

    Raises:
      ValueError: an unknown site; on the first call, a pattern that matches nothing sown.

    Example:
      >>> import nfllm
      >>> run = nfllm.load_run("runs/default")
      >>> where = {"attention_probs": "blocks/attention/attention_probs"}
      >>> sites_of = from_linen(run.model, {"params": run.params}, where)
      >>> sorted(sites_of(np.array([[1, 2, 3]])))
      ['attention_probs', 'logits']
    """
    _check_names(sites)

    @jax.jit
    def apply(variables: Variables, tokens_BT: jax.Array) -> Variables:
        logits, state = module.apply(
            variables,
            tokens_BT,
            capture_intermediates=True,
            mutable=[collection, "intermediates"],
            **arguments,
        )
        sown: dict[str, Any] = {}
        for kind in ("intermediates", collection):
            sown |= traverse_util.flatten_dict(state.get(kind, {}), sep="/")
        return _select(sown, sites, logits)

    return lambda tokens_BT: apply(variables, tokens_BT)


def from_nnx(module: nnx.Module, sites: Patterns, **arguments: Any) -> SitesOf:
    """The sites of an nnx module that maps token ids [B, T] to logits, for `foreign.analyze`.

    The outputs of methods can be used as well, such as `blocks/*/mlp/__call__`.

    Args:
      module: the module, which sows `nnx.Intermediate`, as `nnx.MultiHeadAttention` does with
        `sow_weights=True`. It is not changed; if it has dropout, call its `eval()` first.
      sites: where to find each site, such as `blocks/*/attention/attention_weights`.
      **arguments: arguments of its call besides token ids.

    Returns:
      The function from token ids to sites, including `logits`.

    Raises:
      ValueError: an unknown site; on the first call, a pattern that matches nothing sown.
    """
    _check_names(sites)
    graph, whole = nnx.split(module)

    @jax.jit
    def apply(state: nnx.State, tokens_BT: jax.Array) -> Variables:
        forward: Any = nnx.capture(
            nnx.merge(graph, state), nnx.Intermediate, method_outputs=nnx.Intermediate
        )
        logits, sown = forward(tokens_BT, **arguments)
        flat = {"/".join(map(str, path)): x for path, x in nnx.to_flat_state(sown)}
        return _select({path: x.get_value() for path, x in flat.items()}, sites, logits)

    return lambda tokens_BT: apply(whole, tokens_BT)


def _check_names(sites: Patterns) -> None:
    for site in sites:
        if site not in AXES:
            raise ValueError(f"unknown site {site!r}; {suggest(site, AXES)}")


def _select(sown: Variables, sites: Patterns, logits: ArrayLike) -> Variables:
    found = {site: _layers(sown, site, patterns) for site, patterns in sites.items()}
    return found if LOGITS in found or np.ndim(logits) != 3 else {**found, LOGITS: logits}


def _layers(
    sown: Variables, site: str, patterns: str | Sequence[str]
) -> jax.Array | list[jax.Array]:
    """The layers of a site, stacked or in order; the one array of a site without layers."""
    rank = len(AXES[site].split())
    found: list[jax.Array] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        paths = sorted((path for path in sown if _matches(path, pattern)), key=_by_number)
        if not paths:
            raise ValueError(
                f"no sown array matches the pattern {pattern!r} of {site!r}; there is "
                f"{', '.join(sorted(sown, key=_by_number)) or 'none at all'}"
            )
        found += [_once(path, sown[path]) for path in paths]
    if len(found) == 1 and found[0].ndim == rank:
        return found[0]
    layers: list[jax.Array] = []
    for array in found:  # of one layer, or of all layers of a scan
        layers += [*array] if array.ndim == rank else [array]
    return layers


def _matches(path: str, pattern: str) -> bool:
    parts, patterns = path.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatch.fnmatchcase, parts, patterns))


def _once(path: str, value: object) -> jax.Array:
    """The one array at `path`: `sow` keeps a tuple, with an entry for every call."""
    values = value if isinstance(value, tuple) else (value,)
    if len(values) != 1 or not hasattr(values[0], "shape"):
        raise ValueError(
            f"{path} must be one array, sown once a forward pass, but it has {len(values)} values"
        )
    return values[0]


def _by_number(path: str) -> list[tuple[int, str]]:
    """A sort key that puts `block_10` after `block_9`."""
    return [(int(part or 0), text) for text, part in re.findall(r"(\D+|^)(\d*)", path)]
