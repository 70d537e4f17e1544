"""Alerts: measurements of a model that pass a threshold. The thresholds are conventions."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from nfllm.analysis.arrays import Arrays, as_float32, check_axes
from nfllm.analysis.heads import collapse_share, overload_share

AlertKind = Literal["overload", "collapse", "logit_growth", "dead_units", "not_finite"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlertThresholds:
    """The thresholds of alerts. All are conventions; none is a finding.

    Attributes:
      overload_share: share of the heads in the first half of the layers whose entropy is at least
        3/4 of the maximum.
      collapse_share: share of the heads in the second half whose entropy is below 1/4 of it.
      logit_growth: factor by which the largest logit of a head has grown.
      logit_growth_steps: number of steps within which it has grown by that factor.
      logit_level: growth counts only once the largest logit reaches this. 50 is half the limit at
        which QK-clip (arXiv 2507.20534) sets in; below it, a head with growing logits is learning.
      dead_share: share of the units of a layer that are on for no token.

    Raises:
      ValueError: a share is outside (0, 1], the growth is not above 1, or another is out of range.
    """

    overload_share: float = 0.5
    collapse_share: float = 0.5
    logit_growth: float = 2.0
    logit_growth_steps: int = 1000
    logit_level: float = 50.0
    dead_share: float = 0.5

    def __post_init__(self) -> None:
        for name in ("overload_share", "collapse_share", "dead_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} is outside (0, 1]")
        if not self.logit_growth > 1:
            raise ValueError(f"logit_growth={self.logit_growth} must be greater than 1")
        if not self.logit_growth_steps >= 1:
            raise ValueError(f"logit_growth_steps={self.logit_growth_steps} must be at least 1")
        if not self.logit_level >= 0:
            raise ValueError(f"logit_level={self.logit_level} must not be negative")


@dataclasses.dataclass(frozen=True)
class Alert:
    """A measurement that passed a threshold.

    Attributes:
      kind: what was found.
      where: `(layer, head)` of each head concerned, or `(layer,)` of each layer.
      value: what reached the threshold: a share, a factor, or how many entries are not finite.
      threshold: the threshold that it was compared with.
      message: one sentence on what was found, and one on what has helped elsewhere.
    """

    kind: AlertKind
    where: tuple[tuple[int, ...], ...]
    value: float
    threshold: float
    message: str


def alerts(
    *,
    entropy_LH: Arrays | None = None,
    maximum: float | None = None,
    logit_max_abs_NLH: Arrays | None = None,
    steps_N: Arrays | None = None,
    dead_share_L: Arrays | None = None,
    thresholds: AlertThresholds | None = None,
) -> tuple[Alert, ...]:
    """Checks for overload, collapse, logit growth and dead units.

    A value that is not finite meets none of these thresholds. It raises an alert of its own, so
    that a broken head does not pass for a healthy one. With an odd number of layers the middle one
    is in both halves.

    Args:
      entropy_LH: `[L, H]` entropy of each head, in nats, see `head_entropy`; with `maximum`.
      maximum: M in nats, such as `causal_entropy_ceiling(T)`; see `reference_maximum`.
      logit_max_abs_NLH: `[N, L, H]` largest absolute logit of each head at N steps; with `steps_N`.
      steps_N: `[N]` the steps, in rising order.
      dead_share_L: `[L]` share of dead units of each layer, see `UnitActivity`.
      thresholds: The conventions; by default those of `AlertThresholds`.

    Returns:
      The alerts, at most one for each kind and input; an empty tuple if there is nothing to report.

    Raises:
      ValueError: Nothing to look at, an array without its companion, shapes that do not fit, steps
        that do not rise, or a maximum that is not positive.

    Example:
      >>> found = alerts(entropy_LH=[[3.8, 3.7], [0.1, np.nan]], maximum=3.88)
      >>> [alert.kind for alert in found]  # each has a message that says why
      ['not_finite', 'overload', 'collapse']
    """
    limits = AlertThresholds() if thresholds is None else thresholds
    found: list[Alert | None] = []
    if entropy_LH is not None:
        if maximum is None:
            raise ValueError("entropy_LH needs maximum, such as causal_entropy_ceiling(T)")
        if not maximum > 0:
            raise ValueError(f"maximum must be positive, got {maximum}")
        entropy = _on_host("entropy_LH", entropy_LH, "L H")
        found += [
            _not_finite("entropy", entropy),
            _overload(entropy, maximum, limits),
            _collapse(entropy, maximum, limits),
        ]
    if logit_max_abs_NLH is not None:
        if steps_N is None:
            raise ValueError("logit_max_abs_NLH needs steps_N, the step of each")
        logits = _on_host("logit_max_abs_NLH", logit_max_abs_NLH, "N L H")
        steps = np.asarray(steps_N)
        if np.issubdtype(steps.dtype, np.integer):
            steps = steps.astype(np.int64)  # unsigned differences would wrap
        if steps.shape != logits.shape[:1] or bool(np.any(np.diff(steps) <= 0)):
            raise ValueError(
                f"steps_N: expected {logits.shape[0]} steps in rising order, one for each entry of "
                f"logit_max_abs_NLH, got {steps}"
            )
        found += [_not_finite("largest logit", logits), _logit_growth(logits, steps, limits)]
    if dead_share_L is not None:
        dead = _on_host("dead_share_L", dead_share_L, "L")
        found += [_not_finite("share of dead units", dead), _dead_units(dead, limits)]
    if not found:
        raise ValueError("nothing to look at: give entropy_LH, logit_max_abs_NLH or dead_share_L")
    return tuple(alert for alert in found if alert is not None)


def _on_host(name: str, x: Arrays, axes: str) -> np.ndarray:
    """The values, NaN where they are not finite: Inf would pass thresholds."""
    array = as_float32(x)
    check_axes(name, array, axes)
    return np.where(np.isfinite(array), array, np.nan)


def _not_finite(name: str, values: np.ndarray) -> Alert | None:
    bad = ~np.isfinite(values)
    if not bad.any():
        return None
    # A head that is bad at several steps counts once.
    where = _indices(bad.any(axis=0) if bad.ndim == 3 else bad)
    message = (
        f"not finite: {name} at {int(bad.sum())} of {bad.size} entries, first in layer "
        f"{where[0][0]}. first_bad_site names where it began."
    )
    return Alert("not_finite", where, float(bad.sum()), 1.0, message)


def _overload(entropy: np.ndarray, maximum: float, limits: AlertThresholds) -> Alert | None:
    num_layers = (len(entropy) + 1) // 2
    is_overloaded = np.asarray(overload_share(entropy[:num_layers, :, None], maximum)) == 1
    return _heads(
        "overload",
        is_overloaded,
        first_layer=0,
        threshold=limits.overload_share,
        what="have 3/4 of the maximum entropy or more",
        remedy="In a model without normalization, relu in place of gelu has lowered it "
        "(model.activation; arXiv 2410.09637).",
    )


def _collapse(entropy: np.ndarray, maximum: float, limits: AlertThresholds) -> Alert | None:
    first = len(entropy) // 2
    is_collapsed = np.asarray(collapse_share(entropy[first:, :, None], maximum)) == 1
    return _heads(
        "collapse",
        is_collapsed,
        first_layer=first,
        threshold=limits.collapse_share,
        what="have less than 1/4 of the maximum entropy",
        remedy="Bounded logits prevent it: normalize queries and keys (model.qk_normalization); "
        "a lower optimizer.learning_rate may help too (arXiv 2303.06296).",
    )


def _heads(
    kind: AlertKind,
    is_concerned: np.ndarray,
    first_layer: int,
    threshold: float,
    what: str,
    remedy: str,
) -> Alert | None:
    share = float(is_concerned.mean())
    if share < threshold:
        return None
    message = (
        f"{kind}: {int(is_concerned.sum())} of {is_concerned.size} heads of layers {first_layer} "
        f"to {first_layer + len(is_concerned) - 1} {what}; {threshold:.0%} of them is the "
        f"threshold, a convention. {remedy}"
    )
    where = tuple((first_layer + layer, head) for layer, head in _indices(is_concerned))
    return Alert(kind, where, share, threshold, message)


def _logit_growth(logits: np.ndarray, steps: np.ndarray, limits: AlertThresholds) -> Alert | None:
    factor = np.zeros(logits.shape[1:])
    first_step = None
    for now in range(1, len(steps)):
        before = int(np.searchsorted(steps, steps[now] - limits.logit_growth_steps))
        earlier = np.where(np.isnan(logits[before:now]), np.inf, logits[before:now])
        least = earlier.min(axis=0, initial=np.inf)
        has_grown = logits[now] >= np.maximum(limits.logit_growth * least, limits.logit_level)
        if has_grown.any() and first_step is None:
            first_step = steps[now]
        with np.errstate(divide="ignore", invalid="ignore"):
            factor = np.where(has_grown, np.maximum(factor, logits[now] / least), factor)
    if first_step is None:
        return None
    where = _indices(factor > 0)
    message = (
        f"logit growth: the largest logit of {len(where)} of {factor.size} heads grew "
        f"{factor.max():.3g} times at most, to {limits.logit_level:g} or more, within "
        f"{limits.logit_growth_steps:,} steps, first at step {first_step}; {limits.logit_growth:g} "
        "times is the threshold, a convention. Normalized queries and keys bound it "
        "(model.qk_normalization); a lower optimizer.learning_rate may help too."
    )
    return Alert("logit_growth", where, float(factor.max()), limits.logit_growth, message)


def _dead_units(dead: np.ndarray, limits: AlertThresholds) -> Alert | None:
    is_concerned = dead >= limits.dead_share
    if not is_concerned.any():
        return None
    layers = _indices(is_concerned)
    largest = float(dead[is_concerned].max())
    message = (
        f"dead units: {len(layers)} of {len(dead)} layers have {limits.dead_share:.0%} dead units "
        f"or more, up to {largest:.0%}; {limits.dead_share:.0%} is the threshold, a convention. "
        "An activation with a slope for x < 0 keeps their gradient "
        "(model.activation=leaky_relu); a lower optimizer.learning_rate may help too."
    )
    return Alert("dead_units", layers, largest, limits.dead_share, message)


def _indices(where: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(i) for i in index) for index in np.argwhere(where))
