"""The metrics of `analyze`, by name: each maps a batch to a mergeable state, and that to a result.

Statistics per sequence become `Moments` over sequences: `mean`, `std()`, `standard_error()`,
`minimum`, `maximum`. Axes: N sequences, and those of `model/decoder.py`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nfllm import analysis
from nfllm.analysis import Comoments, Covariance, Moments, UnitActivity
from nfllm.analysis.attention_patterns import earlier_occurrences
from nfllm.analysis.numerics import LAYER_SITES
from nfllm.analysis.shown import shown_in_a_line
from nfllm.config import suggest
from nfllm.config.names import Source
from nfllm.model.capture import Captured

TEMPERATURES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""The grid of the metric `entropy_by_temperature`."""

LAST_KEYS = 4
"""Width of the window of the metric `last_keys_mass`."""


@dataclasses.dataclass(frozen=True)
class Observed:
    """The input of metrics for one batch. Under `jit`, what no metric reads is not computed."""

    captured: Captured
    tokens_BT: jax.Array

    @functools.cached_property
    def entropy_LBHT(self) -> jax.Array:  # noqa: N802 (its axes)
        """Entropy of each query, in nats; from probabilities if a model gives no logits."""
        if "attention_logits" in self.captured._fields:
            logits_LBHTS = self.captured.attention_logits
            return analysis.attention_entropy_from_logits(logits_LBHTS, causal=True)
        return analysis.attention_entropy(self.captured.attention_probs)


class Metric(NamedTuple):
    """A statistic of a data set.

    `of` maps a batch to a state with a method `merge`, or to a dict of such states, under `jit`;
    `result` maps the merged state to the result, on the host. Large states should be merged on the
    device, in single precision (`stays_on_device`). `source` is where the metric was registered;
    None for nfllm's own.
    """

    name: str
    of: Callable[[Observed], Any]
    result: Callable[[Any], Any] = lambda state: state
    stays_on_device: bool = False
    source: Source | None = None


@shown_in_a_line
class Rows(NamedTuple):
    """One row for each sequence, to bootstrap over. Merging concatenates rows."""

    values: jax.Array

    def merge(self, other: Rows) -> Rows:
        """The rows of both."""
        xp = analysis.array_namespace(*self, *other)
        return Rows(xp.concatenate([self.values, other.values]))


@shown_in_a_line
class HeadDiversity(NamedTuple):
    """How different heads are: `divergence_nats` [L, H, H], `effective_heads` [L]."""

    divergence_nats: np.ndarray
    effective_heads: np.ndarray


@shown_in_a_line
class Spectra(NamedTuple):
    """Spectra of the covariance before and after the activation, each `[L]`."""

    participation_ratio_pre: np.ndarray
    participation_ratio_post: np.ndarray
    spectral_entropy_pre: np.ndarray
    spectral_entropy_post: np.ndarray
    divergence_nats: np.ndarray


def find_metrics(metrics: Sequence[str | Metric]) -> dict[str, Metric]:
    """The metrics by name.

    Raises:
      ValueError: no metric, or an unknown name.
    """
    if isinstance(metrics, str) or not metrics:
        raise ValueError(f"metrics={metrics!r} must be a list of names, of {', '.join(METRICS)}")
    chosen = {}
    for metric in metrics:
        if isinstance(metric, str):
            if metric not in METRICS:
                raise ValueError(f"unknown metric {metric!r}; {suggest(metric, METRICS)}")
            metric = METRICS[metric]
        chosen[metric.name] = metric
    return chosen


def class_responses(classes_V: np.ndarray, num_classes: int) -> Metric:
    """A metric that groups the responses of MLP units by a class of their token.

    Args:
      classes_V: class of each token id, 0 to `num_classes` - 1; tokens of any other are left out.
      num_classes: C.

    Returns:
      The metric `class_responses`; its result is an `analysis.ClassResponses`. Measuring raises
      ValueError if the model's vocabulary is larger than `classes_V`.
    """

    def of(x: Observed) -> analysis.ClassResponses:
        vocab_size = x.captured.logits.shape[-1]
        if len(classes_V) < vocab_size:
            raise ValueError(
                f"classes_V has {len(classes_V)} entries, but the model's vocabulary has "
                f"{vocab_size}; give each token id a class, or -1 for none"
            )
        classes_BT = jnp.asarray(classes_V)[x.tokens_BT]
        return analysis.ClassResponses.of(x.captured.mlp_post, classes_BT, num_classes)

    return Metric("class_responses", of)


def _per_sequence(value_LB: jax.Array, where: jax.Array | None = None) -> Moments:
    return Moments.of(value_LB, axis=1, where=where)


def _induction(x: Observed) -> Moments:
    repeats_B = jnp.any(earlier_occurrences(x.tokens_BT), axis=(1, 2))
    score_LBH = analysis.induction_score(x.captured.attention_probs, x.tokens_BT)
    return _per_sequence(score_LBH, where=repeats_B[None, :, None])


def _nan_without_sequence(state: Moments) -> Moments:
    """NaN where no sequence counts, so that 0 always is a measured value."""
    xp = analysis.array_namespace(*state)
    has_none = state.size == 0
    return state._replace(
        mean=xp.where(has_none, xp.nan, state.mean),
        minimum=xp.where(has_none, xp.nan, state.minimum),
        maximum=xp.where(has_none, xp.nan, state.maximum),
    )


def _entropy_by_temperature(x: Observed) -> Moments:
    entropy_NLBHT = analysis.entropy_by_temperature(
        x.captured.attention_logits, TEMPERATURES, causal=True
    )
    return Moments.of(analysis.head_entropy(entropy_NLBHT), axis=2)


def _normalized_entropy(x: Observed) -> Moments:
    normalized = analysis.normalized_entropy(x.entropy_LBHT)
    has_choice = jnp.arange(normalized.shape[-1]) > 0
    return _per_sequence(analysis.head_entropy(normalized, where=has_choice))


def _head_norm(x_LBTHK: jax.Array) -> Moments:
    return _per_sequence(analysis.mean_norm(jnp.swapaxes(x_LBTHK, 2, 3), keep=3))


def _residual_norm(x: Observed) -> Moments:
    return _per_sequence(analysis.mean_norm(x.captured.residual, keep=2))


def _attention_ratio(x: Observed) -> Moments:
    captured = x.captured
    skip = captured.residual[:-1]
    return _per_sequence(analysis.branch_ratio(captured.attention_out, skip, keep=2))


def _mlp_ratio(x: Observed) -> Moments:
    captured = x.captured
    skip = captured.residual[1 : len(captured.mlp_out) + 1] - captured.mlp_out
    return _per_sequence(analysis.branch_ratio(captured.mlp_out, skip, keep=2))


def _mlp_pre(x: Observed) -> Moments:
    pre = x.captured.mlp_pre
    return Moments.of(pre, axis=(1, 2, 3))


def _root_mean_square(state: Moments) -> np.ndarray:
    return np.sqrt(state.variance() + state.mean**2)


def _saturation(x: Observed) -> dict[str, Moments]:
    shares = x.captured.saturation
    return {site: Moments.of(share, axis=-1) for site, share in shares.items()}


def _ledger(x: Observed) -> analysis.Ledger:
    given = [name for name in (*LAYER_SITES, "logits") if name in x.captured._fields]
    sites = {name: getattr(x.captured, name) for name in given}
    visible = {"attention_logits": analysis.causal_mask(x.tokens_BT.shape[1])}
    return analysis.ledger(sites, where={site: visible[site] for site in visible if site in sites})


def _head_diversity(state: Moments) -> HeadDiversity:
    divergence = np.asarray(state.mean)
    return HeadDiversity(divergence, np.asarray(analysis.effective_heads(divergence)))


def _covariances(x: Observed) -> dict[str, Covariance]:
    return {"pre": Covariance.of(x.captured.mlp_pre), "post": Covariance.of(x.captured.mlp_post)}


def _spectra(state: dict[str, Covariance]) -> Spectra:
    pre, post = state["pre"].covariance(), state["post"].covariance()
    results = (
        analysis.participation_ratio(pre),
        analysis.participation_ratio(post),
        analysis.spectral_entropy(pre),
        analysis.spectral_entropy(post),
        analysis.spectral_divergence(pre, post),
    )
    return Spectra(*(np.asarray(result) for result in results))


_ALL = (
    # Attention, by head [L, H] unless said otherwise; entropies in nats.
    Metric("head_entropy", lambda x: _per_sequence(analysis.head_entropy(x.entropy_LBHT))),
    Metric("normalized_entropy", _normalized_entropy),
    Metric("query_entropy", lambda x: _per_sequence(x.entropy_LBHT)),  # [L, H, T]
    Metric(
        "sequence_entropy",  # [N, L, H], one row a sequence
        lambda x: Rows(jnp.moveaxis(analysis.head_entropy(x.entropy_LBHT), 1, 0)),
        lambda state: state.values,
    ),
    Metric("entropy_by_temperature", _entropy_by_temperature),  # [temperature, L, H]
    Metric(
        "logit_spread",
        lambda x: _per_sequence(analysis.logit_spread(x.captured.attention_logits, causal=True)),
    ),
    Metric("query_norm", lambda x: _head_norm(x.captured.query)),
    Metric("key_norm", lambda x: _head_norm(x.captured.key)),
    Metric(
        "sink_score",
        lambda x: _per_sequence(analysis.sink_score(x.captured.attention_probs)),
    ),
    Metric(
        "previous_token_score",
        lambda x: _per_sequence(analysis.previous_token_score(x.captured.attention_probs)),
    ),
    Metric(
        "last_keys_mass",
        lambda x: _per_sequence(analysis.last_keys_mass(x.captured.attention_probs, LAST_KEYS)),
    ),
    Metric("induction_score", _induction, _nan_without_sequence),
    Metric(
        "head_diversity",
        lambda x: _per_sequence(analysis.head_divergence(x.captured.attention_probs)),
        _head_diversity,
    ),
    # The MLP, by layer.
    Metric("mlp_pre_rms", _mlp_pre, _root_mean_square),
    Metric(
        "linear_fit",
        lambda x: analysis.activation_moments(x.captured.mlp_pre, x.captured.mlp_post),
        Comoments.linear_fit,
    ),
    Metric("unit_activity", lambda x: UnitActivity.of(x.captured.mlp_pre, x.captured.mlp_post)),
    Metric("spectra", _covariances, _spectra, stays_on_device=True),
    # The residual stream, by depth [L+1], and its branches [L].
    Metric("residual_norm", _residual_norm),
    Metric("attention_ratio", _attention_ratio),
    Metric("mlp_ratio", _mlp_ratio),
    Metric(
        "token_similarity",
        lambda x: _per_sequence(analysis.token_similarity(x.captured.residual)),
    ),
    Metric("effective_rank", lambda x: _per_sequence(analysis.effective_rank(x.captured.residual))),
    Metric("kurtosis", lambda x: _per_sequence(analysis.kurtosis(x.captured.residual, keep=2))),
    # Point functions in place of normalizations: by site that has one, [L], [] of the final one.
    Metric("saturation", _saturation),
    # Everywhere.
    Metric("ledger", _ledger),
)

METRICS = {metric.name: metric for metric in _ALL}

DEFAULT_METRICS = (
    "head_entropy",
    "sequence_entropy",
    "mlp_pre_rms",
    "linear_fit",
    "unit_activity",
    "residual_norm",
    "ledger",
)
