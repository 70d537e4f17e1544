"""Names of what the model can be asked to record, and the ways to record it.

All are `sow`: nothing is computed, or even traced, unless the caller makes the collection mutable.
`INTERMEDIATES` holds whole tensors, for analysis. `STATISTICS` holds what is left of them after a
reduction on the device, for telemetry while training. `BY_PRODUCTS` holds the few reductions that
are cheap enough for the training step itself.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

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


def record(module: nn.Module, name: str, value: jax.Array) -> None:
    """Records the tensor `value` under `name` when the caller captures intermediates."""
    module.sow(INTERMEDIATES, name, value, reduce_fn=lambda _, new: new, init_fn=lambda: None)


def record_statistic(
    module: nn.Module, name: str, compute: Callable[[], jax.Array], collection: str = STATISTICS
) -> None:
    """Records `compute()` under `name` when the caller collects statistics, or by-products."""
    if module.is_mutable_collection(collection):
        module.sow(collection, name, compute(), reduce_fn=lambda _, new: new, init_fn=lambda: None)


def is_recording(module: nn.Module) -> bool:
    """Whether the caller asks for anything that is recorded."""
    return any(map(module.is_mutable_collection, (INTERMEDIATES, STATISTICS, BY_PRODUCTS)))


def record_health(module: nn.Module, site: str, x: jax.Array) -> None:
    """Records the root mean square of x, and how many of its entries are not finite."""
    record_statistic(
        module,
        f"{RMS}_{site}",
        lambda: jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32)))),
    )
    record_statistic(module, f"{NONFINITE}_{site}", lambda: jnp.sum(~jnp.isfinite(x)))


def record_spectrum(module: nn.Module, site: str, x: jax.Array) -> None:
    """Records the participation ratio of the covariance of the vectors x [..., F]."""
    record_statistic(
        module,
        f"{PARTICIPATION}_{site}",
        lambda: participation_ratio(Covariance.of(x, keep=0).covariance()),
    )
