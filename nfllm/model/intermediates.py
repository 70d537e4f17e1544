"""Names of the tensors and statistics that the model can record, and functions that record them.

All use Flax's `sow`: nothing is computed, or even traced, unless the caller makes the collection
mutable. `INTERMEDIATES` holds whole tensors, for analysis. `STATISTICS` holds reductions of them,
for telemetry during training; `COUNTS` holds the number of non-finite values of every tensor, for
the diagnosis of a step. `BY_PRODUCTS` holds the few reductions that are cheap enough for the
training step itself; telemetry reads them too. `LOSSES` holds the inputs of auxiliary losses,
through which gradients flow.

`UPDATES` holds the next values of parameters that are measured rather than learned
(`Kind.STATISTIC`); only a training step requests it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from nfllm.analysis.numerics import LAYER_SITES, count_nonfinite
from nfllm.analysis.signal import rms
from nfllm.model.layers import join_layers
from nfllm.model.parameters import Variables

INTERMEDIATES = "intermediates"
STATISTICS = "statistics"
COUNTS = "counts"
BY_PRODUCTS = "by_products"
LOSSES = "losses"
UPDATES = "updates"
COLLECTIONS = (INTERMEDIATES, STATISTICS, COUNTS, BY_PRODUCTS, LOSSES)
PATCHES = "patches"
"""Values of `nfllm.model.patch` that replace recorded tensors: an input of the model."""

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
"""The sites where telemetry counts. Non-finite values at other sites spread to the next of these.
"""


class Recorded(NamedTuple):
    """Where a tensor of a block is recorded, and its axes in the result of `nfllm.capture`."""

    module: str | None  # a submodule of the block; None: the block itself
    axes: str


SITES = {
    RESIDUAL: Recorded(None, "LBTD"),
    ATTENTION_IN: Recorded(None, "LBTD"),
    QUERY: Recorded("attention", "LBTHK"),
    KEY: Recorded("attention", "LBTGK"),
    VALUE: Recorded("attention", "LBTGK"),
    ATTENTION_LOGITS: Recorded("attention", "LBHTS"),
    ATTENTION_PROBS: Recorded("attention", "LBHTS"),
    HEAD_OUT: Recorded("attention", "LBTHK"),
    ATTENTION_OUT: Recorded(None, "LBTD"),
    MLP_IN: Recorded(None, "LBTD"),
    MLP_PRE: Recorded("mlp", "LBTF"),
    MLP_POST: Recorded("mlp", "LBTF"),
    MLP_OUT: Recorded(None, "LBTD"),
}
"""Every site of a block, in the order of execution."""

MLP_SITES = (MLP_IN, MLP_PRE, MLP_POST, MLP_OUT)
"""Sites that a block without an MLP does not have; a fused MLP lacks `MLP_PRE` and `MLP_POST`."""


def record(
    module: nn.Module, name: str, value: jax.Array, *, where: jax.Array | None = None
) -> jax.Array:
    """Records the tensor `value` under `name` when the caller captures intermediates.

    Returns `value`, or the caller's patch of it (`nfllm.model.patch`), which is then recorded.

    If the caller collects `COUNTS`, the entries selected by `where` are counted by kind (NaN, +Inf,
    -Inf); if it collects `STATISTICS`, non-finite entries at `WATCHED` sites are counted. Entries
    that `where` does not select must be finite.
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
    module: nn.Module, name: str, compute: Callable[[], object], collection: str = STATISTICS
) -> None:
    """Records `compute()` under `name` if the caller requests the collection."""
    if module.is_mutable_collection(collection):
        _sow(module, collection, name, compute())


def asked_for(module: nn.Module) -> frozenset[str]:
    """The `COLLECTIONS` that the caller requests, and `PATCHES` if it passes any."""
    patches = {PATCHES} & module.variables.keys()
    return frozenset(filter(module.is_mutable_collection, COLLECTIONS)) | patches


def record_size(module: nn.Module, site: str, x: jax.Array) -> None:
    """Records the root mean square of x, and its largest absolute value."""
    record_statistic(module, f"{RMS}_{site}", lambda: rms(x, keep=0))
    record_statistic(module, f"{MAX_ABS}_{site}", lambda: jnp.max(jnp.abs(x)).astype(jnp.float32))


def nonfinite_by_site(collected: Variables, sites: Sequence[str]) -> Variables:
    """The counts that `record` made at each of `sites`, `[L]`: numbers, or counts by kind.

    `residual` has L + 1 entries: the last is for the output of the last layer. Sites that the
    decoder does not have are left out.
    """
    found = join_layers(collected)
    counts = {site: found[key] for site in sites if (key := f"{NONFINITE}_{site}") in found}
    last = collected[f"{NONFINITE}_{RESIDUAL}"]
    return counts | {RESIDUAL: jax.tree.map(jnp.append, counts[RESIDUAL], last)}


def record_update(module: nn.Module, name: str, compute: Callable[[], jax.Array]) -> None:
    """Records the next value of the statistic `name` of `module`, if a training step wants it."""
    record_statistic(module, name, compute, UPDATES)


def _sow(module: nn.Module, collection: str, name: str, value: object) -> None:
    module.sow(collection, name, value, reduce_fn=lambda _, new: new, init_fn=lambda: None)
