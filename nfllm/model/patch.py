"""Patches replace values that a model computes, for causal experiments.

At a recorded site x the model continues with `where(patch.where, patch.value, x)`. Patches are
passed in a variable collection, so that the loop over layers, scanned or unrolled, gives each layer
its own. Gradients flow through entries that are not replaced.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from nfllm.analysis.arrays import as_booleans
from nfllm.config import ModelConfig, suggest
from nfllm.model import intermediates as names
from nfllm.model.layers import BLOCKS, split_layers
from nfllm.model.parameters import Variables


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["value", "where"], meta_fields=["site"]
)
@dataclasses.dataclass(frozen=True)
class Patch:
    """Values that replace those of a recorded site; a pytree, which can be passed to `jax.jit`.

    Attributes:
      site: a field of `nfllm.Captured` except `logits`, such as "mlp_post".
      value: an array with the axes of the site's field, each of its length or of 1; or a number.
      where: booleans of such a shape, True for entries to replace; or one bool for all.

    Example:
      >>> import nfllm
      >>> run = nfllm.load_run("runs/default")
      >>> other = nfllm.capture(run.model, run.params, jnp.array([[1, 2, 3]]))
      >>> layer_1 = (jnp.arange(len(other.mlp_out)) == 1)[:, None, None, None]
      >>> patch = Patch("mlp_out", other.mlp_out, layer_1)
      >>> patched = nfllm.capture(run.model, run.params, jnp.array([[1, 2, 4]]), patches=[patch])
    """

    site: str
    value: jax.Array | float
    where: jax.Array | bool = True


def patch_variables(
    patches: Patch | Sequence[Patch], shapes: Mapping[str, tuple[int, ...]], config: ModelConfig
) -> Variables:
    """The variables that apply patches to a decoder; where patches overlap, the last one counts.

    Args:
      patches: the patches, or one.
      shapes: shape of each site, as in `Captured`.
      config: config of the decoder.

    Returns:
      `{"patches": ...}`, to be passed to `Decoder.apply` beside `params`; empty without a patch.

    Raises:
      ValueError: an unknown site, one that no layer has, or a value or mask that does not fit its
        shape.
    """
    by_site: dict[str, dict[str, jax.Array]] = {}
    for patch in [patches] if isinstance(patches, Patch) else patches:
        site = patch.site
        where = as_booleans(f"where of {site}", patch.where)
        new = {"value": jnp.asarray(patch.value), "where": where}
        if site not in shapes:
            raise ValueError(f"unknown site {site!r}; {suggest(site, shapes)}")
        if not shapes[site][0]:
            key = "mlp" if site in names.MLP_SITES else "mixer"
            raise ValueError(
                f"no layer has a site {site!r}: model.{key} is {getattr(config, key)!r}"
            )
        new = {kind: _fitted(x, shapes[site], f"{kind} of {site}") for kind, x in new.items()}
        if (old := by_site.get(site)) is not None:
            new["value"] = jnp.where(new["where"], new["value"], old["value"])
            new["where"] |= old["where"]
        by_site[site] = new
    return {names.PATCHES: _by_module(by_site, config)} if by_site else {}


def _by_module(by_site: dict[str, dict[str, jax.Array]], config: ModelConfig) -> Variables:
    """The patches of each module; the residual stream has one that comes after the last block."""
    variables: Variables = {}
    for site, patch in by_site.items():
        if site == names.RESIDUAL:
            variables[site] = {kind: x[-1] for kind, x in patch.items()}
            patch = {kind: x[:-1] for kind, x in patch.items()}
        has_all = site not in names.MLP_SITES
        parts = split_layers(config, patch) if has_all else {BLOCKS: patch}
        module = names.SITES[site].module
        for stack, part in parts.items():
            block = variables.setdefault(stack, {})
            (block if module is None else block.setdefault(module, {}))[site] = part
    return variables


def _fitted(x: jax.Array, shape: tuple[int, ...], what: str) -> jax.Array:
    """`x` with an entry for each layer and as many axes as `shape`."""
    if x.ndim == 0:
        x = x.reshape((1,) * len(shape))
    fits = x.ndim == len(shape) and all(a in (1, b) for a, b in zip(x.shape, shape, strict=True))
    if not fits:
        raise ValueError(
            f"the {what} has shape {x.shape}, which does not fit {shape}: give it as many axes, "
            "each of the same length or of 1"
        )
    return jnp.broadcast_to(x, (shape[0], *x.shape[1:]))
