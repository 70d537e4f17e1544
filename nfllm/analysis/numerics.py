"""The ledger of non-finite values: where in a model the first NaN or Inf came from.

A ledger is a dict from site to `NonfiniteCounts`, a pytree that can be returned from `jit`:

    counts = ledger({"residual": residual, "attention_logits": logits, "loss": loss},
                    where={"attention_logits": causal_mask(T)})
    first_bad_site(counts)

Masked logits are the type's most negative number or -Inf on purpose: leave them out with `where`.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from nfllm.analysis.arrays import (
    Arrays,
    array_namespace,
    as_array,
    as_booleans,
    broadcasts_to,
    tail_axes,
)
from nfllm.analysis.shown import shown_in_a_line

LAYER_SITES = (
    "residual",
    "query",
    "key",
    "attention_logits",
    "attention_probs",
    "attention_out",
    "mlp_pre",
    "mlp_post",
    "mlp_out",
)
"""Sites of one layer in the order of execution, each `[L, ...]`; `residual` may be `[L+1, ...]`,
where the last is the output of the last layer."""

MODEL_SITES = ("logits", "loss")
"""What comes after the layers, of any shape."""

GRADIENT_SITES = ("gradients", "other_gradients")
"""Trees of gradients: of the layers, with leaves `[L, ...]`, which the backward pass computes from
the last layer to the first; and all others (embeddings), with leaves of any shape."""


@shown_in_a_line
class NonfiniteCounts(NamedTuple):
    """Counts of non-finite entries, and the largest absolute value among the finite ones."""

    nan: jax.Array
    positive_inf: jax.Array
    negative_inf: jax.Array
    size: jax.Array
    """How many entries were looked at."""
    max_abs: jax.Array
    """Zero where no entry is finite."""

    def merge(self, other: NonfiniteCounts) -> NonfiniteCounts:
        """The counts of both."""
        return NonfiniteCounts(
            self.nan + other.nan,
            self.positive_inf + other.positive_inf,
            self.negative_inf + other.negative_inf,
            self.size + other.size,
            array_namespace(*self, *other).maximum(self.max_abs, other.max_abs),
        )

    def total(self) -> jax.Array:
        """Number of non-finite entries."""
        return self.nan + self.positive_inf + self.negative_inf


def count_nonfinite(x: Arrays, *, keep: int = 0, where: ArrayLike | None = None) -> NonfiniteCounts:
    """Counts NaN, +Inf and -Inf over all axes but the first `keep`.

    Args:
      x: Of any shape `[...]` and any float type; float64 is read as float32 unless JAX has x64.
      keep: Number of leading axes to keep: 1 gives counts by layer.
      where: Booleans of a shape that broadcasts to `x`, True for entries to look at; masked
        attention logits are left out.

    Returns:
      Counts of the shape of the kept axes: integers, and `max_abs` float32 in the units of `x`.

    Raises:
      ValueError: `where` does not broadcast to `x` or is not of booleans, or `keep` exceeds the
        rank of `x`.

    Example:
      >>> found = count_nonfinite([1.0, -3.0, np.nan, np.inf])
      >>> int(found.nan), int(found.total()), float(found.max_abs)
      (1, 2, 3.0)
    """
    x = as_array(x)
    use = jnp.ones((), bool) if where is None else as_booleans("where", where)
    if not broadcasts_to(use.shape, x.shape):
        raise ValueError(f"where: expected a shape that broadcasts to {x.shape}, got {use.shape}")
    return _count_nonfinite(x, jnp.broadcast_to(use, x.shape), tail_axes(x, keep))


@functools.partial(jax.jit, static_argnames="axes")
def _count_nonfinite(x: jax.Array, use: jax.Array, axes: tuple[int, ...]) -> NonfiniteCounts:
    finite = use & jnp.isfinite(x)
    return NonfiniteCounts(
        jnp.sum(use & jnp.isnan(x), axis=axes),
        jnp.sum(use & jnp.isposinf(x), axis=axes),
        jnp.sum(use & jnp.isneginf(x), axis=axes),
        jnp.sum(use, axis=axes),
        jnp.max(jnp.abs(x), axis=axes, where=finite, initial=0).astype(jnp.float32),
    )


Ledger = dict[str, NonfiniteCounts]
"""From a site in the model to the counts there: `[L]` for sites of the layers, else scalars."""


def ledger(sites: Mapping[str, Any], *, where: Mapping[str, ArrayLike] | None = None) -> Ledger:
    """Counts of non-finite values at each site: by layer, where the site has layers.

    Args:
      sites: From site (`LAYER_SITES`, `MODEL_SITES`, `GRADIENT_SITES`) to its array, or to its tree
        of gradients. Any subset.
      where: Entries to look at, for some of the sites, of a shape that broadcasts to the site's.

    Returns:
      Counts `[L]` for layer sites and `gradients`, scalars for the others; integers, and `max_abs`
      float32 in the units of the site.

    Raises:
      ValueError: An unknown site, a mask without its site or for gradients, or a tree without a
        gradient.

    Example:
      >>> counts = ledger({"mlp_pre": [[1.0, 2.0], [1.0, np.nan]], "loss": np.nan})
      >>> first_bad_site(counts)[:3]  # site, layer, how many NaN
      ('mlp_pre', 1, 1)
    """
    known = (*LAYER_SITES, *MODEL_SITES, *GRADIENT_SITES)
    for name in sites:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ValueError(f"unknown site {name!r}; {hint}choose from {', '.join(known)}")
    where = where or {}
    for name in where:
        if name not in sites:
            raise ValueError(f"where has a mask for {name!r}, which is not among the sites")
        if name in GRADIENT_SITES:
            raise ValueError(f"where has a mask for {name!r}, but gradients are counted whole")
    result = {}
    for name, value in sites.items():
        keep = int(name in LAYER_SITES or name == "gradients")
        if name in GRADIENT_SITES:
            leaves = [count_nonfinite(leaf, keep=keep) for leaf in jax.tree.leaves(value)]
            if not leaves:
                raise ValueError(f"{name}: the tree has no array")
            result[name] = leaves[0]
            for leaf in leaves[1:]:
                result[name] = result[name].merge(leaf)
        else:
            result[name] = count_nonfinite(value, keep=keep, where=where.get(name))
    return result


def merge_ledgers(a: Ledger, b: Ledger) -> Ledger:
    """The ledger of two batches.

    Raises:
      ValueError: Their sites differ.

    Example:
      >>> both = merge_ledgers(ledger({"loss": np.nan}), ledger({"loss": np.nan}))
      >>> int(both["loss"].nan)
      2
    """
    if differing := sorted(a.keys() ^ b.keys()):
        raise ValueError(f"only one of the two ledgers has {', '.join(differing)}")
    return {name: counts.merge(b[name]) for name, counts in a.items()}


class BadSite(NamedTuple):
    """The first site, in the order of execution, with a value that is not finite."""

    site: str
    layer: int | None
    """None for a site that has no layers."""
    nan: int
    positive_inf: int
    negative_inf: int
    size: int

    def __str__(self) -> str:
        place = self.site if self.layer is None else f"{self.site} of layer {self.layer}"
        return (
            f"{place}: {self.nan} NaN, {self.positive_inf} +Inf and {self.negative_inf} -Inf among "
            f"{self.size} values; every recorded site before it is finite"
        )


def first_bad_site(record: Ledger) -> BadSite | None:
    """Where the first non-finite value appeared.

    Sites are searched in the order of execution: layer after layer, in each the order of
    `LAYER_SITES`, then the output of the last layer, the logits and the loss, then the gradients
    from the last layer to the first.

    Args:
      record: As `ledger` returns it.

    Returns:
      The site and its counts, which `str()` says in words; None if all is finite.

    Example:
      >>> first_bad_site(ledger({"loss": 4.0})) is None
      True
    """
    counts = {name: jax.tree.map(np.asarray, value) for name, value in record.items()}
    for name, layer in _execution_order(counts):
        nan, positive, negative, size = (
            int(field if layer is None else field[layer]) for field in counts[name][:4]
        )
        if nan or positive or negative:
            return BadSite(name, layer, nan, positive, negative, size)
    return None


def _execution_order(record: Ledger) -> list[tuple[str, int | None]]:
    num_layers = max((len(record[name].nan) for name in LAYER_SITES if name in record), default=0)
    order: list[tuple[str, int | None]] = [
        (name, layer)
        for layer in range(num_layers)
        for name in LAYER_SITES
        if name in record and layer < len(record[name].nan)
    ]
    order += [(name, None) for name in MODEL_SITES if name in record]
    if "gradients" in record:
        order += [("gradients", layer) for layer in reversed(range(len(record["gradients"].nan)))]
    if "other_gradients" in record:
        order.append(("other_gradients", None))
    return order


class Onset(NamedTuple):
    """The step at which values stopped being finite, and what led up to it."""

    step: int
    site: BadSite
    steps_before: tuple[int, ...]
    max_abs_logit: np.ndarray
    """`[N]`, for each step before, the largest finite absolute value of an attention logit over the
    layers; NaN if not recorded."""
    max_abs_residual: np.ndarray
    """`[N]`, the same for the residual stream."""


def find_onset(history: Sequence[tuple[int, Ledger]]) -> Onset | None:
    """The first step whose ledger has a non-finite value, with the growth of the steps before it.

    Logits and residuals that grow over steps until they overflow have another cause than a NaN
    that appears among small values.

    Args:
      history: Step and ledger, in the order of steps.

    Returns:
      The step, its first bad site and the growth before it; None if every ledger is finite.

    Example:
      >>> history = [(0, ledger({"residual": [[1.0]]})), (1, ledger({"residual": [[np.inf]]}))]
      >>> onset = find_onset(history)
      >>> onset.step, onset.max_abs_residual
      (1, array([1.]))
    """
    for index, (step, record) in enumerate(history):
        site = first_bad_site(record)
        if site is not None:
            before = history[:index]

            def growth(name: str, before: Sequence[tuple[int, Ledger]] = before) -> np.ndarray:
                return np.array(
                    [np.max(r[name].max_abs) if name in r else np.nan for _, r in before], float
                )

            return Onset(
                step,
                site,
                tuple(s for s, _ in before),
                growth("attention_logits"),
                growth("residual"),
            )
    return None
