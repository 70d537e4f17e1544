"""Names of what the model can be asked to record, and the ways to record it.

All are `sow`: nothing is computed, or even traced, unless the caller makes the collection mutable.
`INTERMEDIATES` holds whole tensors, for analysis. `STATISTICS` holds what is left of them after a
reduction on the device, for telemetry while training. `BY_PRODUCTS` holds the few reductions that
are cheap enough for the training step itself.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from nfllm.analysis.numerics import LAYER_SITES, Ledger, count_nonfinite
from nfllm.analysis.spectra import participation_ratio
from nfllm.analysis.statistics import Covariance

INTERMEDIATES = "intermediates"
STATISTICS = "statistics"
BY_PRODUCTS = "by_products"

RESIDUAL = "residual"
QUERY = "query"
KEY = "key"
ATTENTION_LOGITS = "attention_logits"
ATTENTION_PROBS = "attention_probs"
ATTENTION_OUT = "attention_out"
MLP_PRE = "mlp_pre"
MLP_POST = "mlp_post"
MLP_OUT = "mlp_out"

ENTROPY = "entropy"
LOGIT_MAX_ABS = "logit_max_abs"
NONFINITE = "nonfinite"
PARTICIPATION = "participation"
RMS = "rms"


def record(
    module: nn.Module, name: str, value: jax.Array, *, where: jax.Array | None = None
) -> None:
    """Records the tensor `value` under `name` when the caller captures intermediates.

    When the caller collects statistics, counts its entries that are not finite, of those `where`.
    """
    _sow(module, INTERMEDIATES, name, value)
    record_statistic(module, f"{NONFINITE}_{name}", lambda: count_nonfinite(value, where=where))


def record_statistic(
    module: nn.Module, name: str, compute: Callable[[], Any], collection: str = STATISTICS
) -> None:
    """Records `compute()` under `name` when the caller collects statistics, or by-products."""
    if module.is_mutable_collection(collection):
        _sow(module, collection, name, compute())


def is_recording(module: nn.Module) -> bool:
    """Whether the caller asks for anything that is recorded."""
    return any(map(module.is_mutable_collection, (INTERMEDIATES, STATISTICS, BY_PRODUCTS)))


def record_rms(module: nn.Module, site: str, x: jax.Array) -> None:
    """Records the root mean square of x."""
    record_statistic(
        module,
        f"{RMS}_{site}",
        lambda: jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32)))),
    )


def record_spectrum(module: nn.Module, site: str, x: jax.Array) -> None:
    """Records the participation ratio of the covariance of the vectors x [..., F]."""
    record_statistic(
        module,
        f"{PARTICIPATION}_{site}",
        lambda: participation_ratio(Covariance.of(x, keep=0).covariance()),
    )


def counts_by_site(statistics: Mapping[str, Any]) -> Ledger:
    """Counts at each of `LAYER_SITES` in the collected statistics of a decoder, `[L]`.

    `residual` has L + 1: the last is what leaves the last layer.
    """
    block = statistics["blocks"]
    found = {**block, **block["attention"], **block["mlp"]}
    counts = {site: found[f"{NONFINITE}_{site}"] for site in LAYER_SITES}
    last = statistics[f"{NONFINITE}_{RESIDUAL}"]
    return counts | {RESIDUAL: jax.tree.map(jnp.append, counts[RESIDUAL], last)}


def _sow(module: nn.Module, collection: str, name: str, value: Any) -> None:
    module.sow(collection, name, value, reduce_fn=lambda _, new: new, init_fn=lambda: None)
