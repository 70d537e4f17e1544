"""Analysis of decoders: pure functions on arrays, of any model and any framework.

Nothing here depends on nfllm's models: arrays come in (NumPy, JAX, or whatever NumPy can read),
float32 arrays and integer counts go out. Functions of arrays work inside `jax.jit`; those that
compare whole runs, read states on the host or search for a step (`alerts`, `compare_seeds`,
`seed_interval`, `reference_maximum`, `first_bad_site`, `find_onset`, `to_host`) do not. Entropies
and divergences are in nats.

Axes: L layers, B batch, H heads, T query position, S key position, D model width, F MLP width.
"""

from nfllm.analysis.alerting import Alert, AlertThresholds, alerts
from nfllm.analysis.arrays import array_namespace, causal_mask, visible_keys
from nfllm.analysis.attention_logits import entropy_by_temperature, logit_spread
from nfllm.analysis.attention_patterns import (
    induction_score,
    last_keys_mass,
    previous_token_score,
    sink_score,
)
from nfllm.analysis.covariance import Covariance
from nfllm.analysis.divergence import jensen_shannon, shannon_entropy
from nfllm.analysis.entropy import (
    attention_entropy,
    causal_entropy_ceiling,
    head_entropy,
    normalized_entropy,
)
from nfllm.analysis.entropy_floor import entropy_floor
from nfllm.analysis.head_diversity import effective_heads, head_divergence, head_entropy_spread
from nfllm.analysis.heads import (
    collapse_share,
    head_histogram,
    overload_share,
    reference_maximum,
)
from nfllm.analysis.intervals import (
    Interval,
    SeedComparison,
    bootstrap_interval,
    compare_seeds,
    seed_interval,
)
from nfllm.analysis.neurons import UnitActivity, activation_moments, weight_decay_curve
from nfllm.analysis.numerics import (
    BadSite,
    Ledger,
    NonfiniteCounts,
    Onset,
    count_nonfinite,
    find_onset,
    first_bad_site,
    ledger,
    merge_ledgers,
)
from nfllm.analysis.online_entropy import attention_entropy_from_logits, attention_entropy_from_qk
from nfllm.analysis.signal import (
    branch_ratio,
    effective_rank,
    kurtosis,
    mean_norm,
    norm_by_layer,
    rms,
    saturation,
    token_similarity,
)
from nfllm.analysis.specialization import ClassResponses
from nfllm.analysis.spectra import (
    eigenvalue_shares,
    participation_ratio,
    projected_participation_ratio,
    spectral_divergence,
    spectral_entropy,
)
from nfllm.analysis.statistics import (
    Comoments,
    Histogram,
    LinearFit,
    Moments,
    merge_all,
    to_host,
    update,
)

__all__ = [
    "Alert",
    "AlertThresholds",
    "BadSite",
    "ClassResponses",
    "Comoments",
    "Covariance",
    "Histogram",
    "Interval",
    "Ledger",
    "LinearFit",
    "Moments",
    "NonfiniteCounts",
    "Onset",
    "SeedComparison",
    "UnitActivity",
    "activation_moments",
    "alerts",
    "array_namespace",
    "attention_entropy",
    "attention_entropy_from_logits",
    "attention_entropy_from_qk",
    "bootstrap_interval",
    "branch_ratio",
    "causal_entropy_ceiling",
    "causal_mask",
    "collapse_share",
    "compare_seeds",
    "count_nonfinite",
    "effective_heads",
    "effective_rank",
    "eigenvalue_shares",
    "entropy_by_temperature",
    "entropy_floor",
    "find_onset",
    "first_bad_site",
    "head_divergence",
    "head_entropy",
    "head_entropy_spread",
    "head_histogram",
    "induction_score",
    "jensen_shannon",
    "kurtosis",
    "last_keys_mass",
    "ledger",
    "logit_spread",
    "mean_norm",
    "merge_all",
    "merge_ledgers",
    "norm_by_layer",
    "normalized_entropy",
    "overload_share",
    "participation_ratio",
    "previous_token_score",
    "projected_participation_ratio",
    "reference_maximum",
    "rms",
    "saturation",
    "seed_interval",
    "shannon_entropy",
    "sink_score",
    "spectral_divergence",
    "spectral_entropy",
    "to_host",
    "token_similarity",
    "update",
    "visible_keys",
    "weight_decay_curve",
]
