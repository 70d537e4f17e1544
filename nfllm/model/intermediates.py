"""Names of what the model can be asked to record, and the ways to record it.

All are `sow`: nothing is computed, or even traced, unless the caller makes the collection mutable.
`INTERMEDIATES` holds whole tensors, for analysis. `STATISTICS` holds what is left of them after a
reduction on the device, for telemetry while training; `COUNTS` what is not finite of every tensor,
for the diagnosis of a step. `BY_PRODUCTS` holds the few reductions that are cheap enough for the
training step itself; telemetry reads them too. `LOSSES` holds what a loss beside cross-entropy is
made of, through which gradients flow.

`UPDATES` is for parameters that are measured and not learned (`Kind.STATISTIC`): their next values,
which only a training step asks for.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from nfllm.analysis.numerics import LAYER_SITES, count_nonfinite
from nfllm.analysis.signal import rms
from nfllm.model.layers import join_layers

INTERMEDIATES = "intermediates"
STATISTICS = "statistics"
COUNTS = "counts"
BY_PRODUCTS = "by_products"
LOSSES = "losses"
UPDATES = "updates"
COLLECTIONS = (INTERMEDIATES, STATISTICS, COUNTS, BY_PRODUCTS, LOSSES)
PATCHES = "patches"
"""What `nfllm.model.patch` puts in place of recorded tensors: an input, not a record."""

RESIDUAL = "residual"
ATTENTION_IN = "attention_in"
QUERY = "query"
KEY = "key"
VALUE = "value"
ATTENTION_LOGITS = "attention_logits"
ATTENTION_PROBS = "attention_probs"
HEAD_OUT = "head_out"
ATTENTION_OUT = "attention_out"
MLP_IN = "mlp_in"
MLP_PRE = "mlp_pre"
MLP_POST = "mlp_post"
MLP_OUT = "mlp_out"

ENTROPY = "entropy"
LOGIT_MAX = "logit_max"
LOGIT_MAX_ABS = "logit_max_abs"
MAX_ABS = "max_abs"
NONFINITE = "nonfinite"
PARTICIPATION = "participation"
RMS = "rms"
SATURATION = "saturation"


WATCHED = (RESIDUAL, ATTENTION_LOGITS, ATTENTION_OUT, MLP_PRE, MLP_OUT)
"""Where telemetry counts. What is not finite elsewhere is not finite at the next of these."""


MODULES: dict[str, str | None] = {
    RESIDUAL: None,
    ATTENTION_IN: None,
    QUERY: "attention",
    KEY: "attention",
    VALUE: "attention",
    ATTENTION_LOGITS: "attention",
    ATTENTION_PROBS: "attention",
    HEAD_OUT: "attention",
    ATTENTION_OUT: "attention",
    MLP_IN: None,
    MLP_PRE: "mlp",
    MLP_POST: "mlp",
    MLP_OUT: "mlp",
}
"""The module of a block that records a site; None: the block itself."""

MLP_SITES = (MLP_IN, MLP_PRE, MLP_POST, MLP_OUT)
"""What a block without an MLP does not record; a fused one has no `MLP_PRE` and `MLP_POST`."""


def record(
    module: nn.Module, name: str, value: jax.Array, *, where: jax.Array | None = None
) -> jax.Array:
    """Records the tensor `value` under `name` when the caller captures intermediates.

    Returns it, or what the caller has put in its place (`nfllm.model.patch`), which is then what is
    recorded.

    When the caller collects counts, counts its entries by kind, of those `where`; when it collects
    statistics, how many of those that telemetry watches are not finite. What `where` leaves out
    must be finite.
    """
    patch: dict[str, jax.Array] | None = module.get_variable(PATCHES, name, None)
    if patch is not None:
        value = jnp.where(patch["where"], patch["value"].astype(value.dtype), value)
    _sow(module, INTERMEDIATES, name, value)
    key = f"{NONFINITE}_{name}"
    if name in LAYER_SITES:
        record_statistic(module, key, lambda: count_nonfinite(value, where=where), COUNTS)
    if name in WATCHED:
        record_statistic(module, key, lambda: jnp.sum(~jnp.isfinite(value)))
    return value


def record_statistic(
    module: nn.Module, name: str, compute: Callable[[], Any], collection: str = STATISTICS
) -> None:
    """Records `compute()` under `name` when the caller collects statistics, or by-products."""
    if module.is_mutable_collection(collection):
        _sow(module, collection, name, compute())


def asked_for(module: nn.Module) -> frozenset[str]:
    """Those of `COLLECTIONS` that the caller asks for, and `PATCHES` where there are any."""
    patches = {PATCHES} & module.variables.keys()
    return frozenset(filter(module.is_mutable_collection, COLLECTIONS)) | patches


def record_size(module: nn.Module, site: str, x: jax.Array) -> None:
    """Records the root mean square of x, and its largest absolute value."""
    record_statistic(
        module,
        f"{RMS}_{site}",
        lambda: rms(x, keep=0),
    )
    record_statistic(module, f"{MAX_ABS}_{site}", lambda: jnp.max(jnp.abs(x)).astype(jnp.float32))


def nonfinite_by_site(collected: Mapping[str, Any], sites: Sequence[str]) -> dict[str, Any]:
    """What `record` counted in a decoder at each of `sites`, `[L]`: numbers, or counts by kind.

    `residual` has L + 1: the last is what leaves the last layer. A site that the decoder does not
    have, as of a fused MLP, is left out.
    """
    found = join_layers(collected)
    counts = {site: found[key] for site in sites if (key := f"{NONFINITE}_{site}") in found}
    last = collected[f"{NONFINITE}_{RESIDUAL}"]
    return counts | {RESIDUAL: jax.tree.map(jnp.append, counts[RESIDUAL], last)}


def record_update(module: nn.Module, name: str, compute: Callable[[], jax.Array]) -> None:
    """Records the next value of the statistic `name` of `module`, when a training step asks."""
    record_statistic(module, name, compute, UPDATES)


def _sow(module: nn.Module, collection: str, name: str, value: Any) -> None:
    module.sow(collection, name, value, reduce_fn=lambda _, new: new, init_fn=lambda: None)
