"""Alerts: cases counted by hand, on both sides of each threshold."""

from typing import Any

import numpy as np
import pytest

from nfllm import analysis
from nfllm.analysis import AlertThresholds, alerts

HEALTHY = np.full((4, 2), 0.5)


def kinds(**inputs: Any) -> list[str]:
    return [alert.kind for alert in alerts(**inputs)]


def test_all_is_well() -> None:
    logits = np.full((3, 4, 2), 80.0)
    found = alerts(
        entropy_LH=HEALTHY,
        maximum=1.0,
        logit_max_abs_NLH=logits,
        steps_N=[0, 10, 20],
        dead_share_L=[0.0, 0.1, 0.2, 0.49],
    )
    assert found == ()


def test_overload_is_judged_in_the_first_half_and_collapse_in_the_second() -> None:
    entropy = np.array([[0.75, 0.9], [0.1, 0.1], [0.9, 0.9], [0.24, 0.25]])
    overload = alerts(entropy_LH=entropy, maximum=1.0)
    assert [(a.kind, a.where, a.value) for a in overload] == [
        ("overload", ((0, 0), (0, 1)), 0.5),
    ]
    assert "2 of 4 heads of layers 0 to 1" in overload[0].message
    assert "a convention" in overload[0].message
    assert "model.activation" in overload[0].message
    entropy[3, 1] = 0.0
    collapse = alerts(entropy_LH=entropy, maximum=1.0)[1]
    assert (collapse.kind, collapse.where) == ("collapse", ((3, 0), (3, 1)))
    assert (collapse.value, collapse.threshold) == (0.5, 0.5)
    assert "2 of 4 heads of layers 2 to 3 have less than 1/4" in collapse.message
    other_halves = np.array([[0.1, 0.1], [0.9, 0.9]])
    assert kinds(entropy_LH=other_halves, maximum=1.0) == []


def test_the_middle_layer_is_in_both_halves() -> None:
    entropy = np.array([[0.5] * 4, [0.9, 0.9, 0.1, 0.1], [0.5] * 4])
    quarter = AlertThresholds(overload_share=0.25, collapse_share=0.25)
    found = alerts(entropy_LH=entropy, maximum=1.0, thresholds=quarter)
    assert [(a.kind, a.where) for a in found] == [
        ("overload", ((1, 0), (1, 1))),
        ("collapse", ((1, 2), (1, 3))),
    ]
    assert kinds(entropy_LH=[[0.9]], maximum=1.0) == ["overload"]
    assert kinds(entropy_LH=[[0.1]], maximum=1.0) == ["collapse"]


def test_the_maximum_decides() -> None:
    entropy = np.full((2, 2), 3.0)
    assert kinds(entropy_LH=entropy, maximum=analysis.causal_entropy_ceiling(128)) == ["overload"]
    assert kinds(entropy_LH=entropy, maximum=float(np.log(128))) == []


def logits_of(*values: float) -> np.ndarray:
    """One head of two that goes through `values`; the other stays at 1."""
    logits = np.ones((len(values), 1, 2))
    logits[:, 0, 1] = values
    return logits


@pytest.mark.parametrize(
    ("values", "steps", "factor"),
    [
        ((30, 60), (0, 1000), 2.0),
        ((30, 59.9), (0, 1000), None),  # not doubled
        ((30, 60), (0, 1001), None),  # not within 1000 steps
        ((20, 40), (0, 10), None),  # below the level
        ((20, 40, 50), (0, 10, 20), 2.5),
        ((60, 25, 50, 70), (0, 10, 20, 30), 2.8),  # since it was least
        ((0, 60), (0, 10), np.inf),
        ((30, np.nan, 60), (0, 10, 20), 2.0),
        ((120, 60, 30), (0, 10, 20), None),
        ((100,), (5,), None),
    ],
)
def test_logit_growth(
    values: tuple[float, ...], steps: tuple[int, ...], factor: float | None
) -> None:
    found = alerts(logit_max_abs_NLH=logits_of(*values), steps_N=steps)
    growth = [alert for alert in found if alert.kind == "logit_growth"]
    if factor is None:
        assert growth == []
        return
    (alert,) = growth
    assert alert.where == ((0, 1),)
    assert alert.value == pytest.approx(factor, rel=1e-6)
    assert "1 of 2 heads" in alert.message
    assert f"first at step {steps[-1]}" in alert.message or len(steps) > 2


def test_logit_growth_names_the_first_step() -> None:
    found = alerts(logit_max_abs_NLH=logits_of(10, 20, 50, 60), steps_N=[0, 7, 14, 21])
    assert "first at step 14;" in found[0].message


def test_dead_units() -> None:
    (alert,) = alerts(dead_share_L=[0.1, 0.5, 0.49, 0.8])
    assert (alert.kind, alert.where, alert.threshold) == ("dead_units", ((1,), (3,)), 0.5)
    assert alert.value == pytest.approx(0.8)
    assert "2 of 4 layers have 50% dead units or more, up to 80%" in alert.message


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_an_alert_and_in_no_share(bad: float) -> None:
    entropy = HEALTHY.copy()
    entropy[2] = bad
    (alert,) = alerts(entropy_LH=entropy, maximum=1.0)
    assert (alert.kind, alert.where, alert.value) == ("not_finite", ((2, 0), (2, 1)), 2)
    assert "entropy at 2 of 8 entries, first in layer 2" in alert.message
    (alert,) = alerts(entropy_LH=[[bad, bad], [0.5, 0.5]], maximum=1.0)
    assert alert.kind == "not_finite"
    (alert,) = alerts(logit_max_abs_NLH=logits_of(1, bad, bad), steps_N=[0, 1, 2])
    assert (alert.kind, alert.where, alert.value) == ("not_finite", ((0, 1),), 2)
    (alert,) = alerts(dead_share_L=[0.0, bad])
    assert (alert.kind, alert.where) == ("not_finite", ((1,),))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint32, np.int64, np.float32])
def test_steps_of_any_type(dtype: type) -> None:
    (alert,) = alerts(
        logit_max_abs_NLH=logits_of(10, 30, 100), steps_N=np.array([0, 100, 200], dtype)
    )
    assert (alert.kind, alert.value) == ("logit_growth", pytest.approx(10.0))
    with pytest.raises(ValueError, match="in rising order"):
        alerts(logit_max_abs_NLH=logits_of(1, 2), steps_N=np.array([100, 0], dtype))


def test_thresholds_are_what_they_are_set_to() -> None:
    stricter = AlertThresholds(
        overload_share=1.0, logit_growth=1.5, logit_growth_steps=5, logit_level=3, dead_share=0.1
    )
    assert kinds(entropy_LH=[[0.9, 0.5]], maximum=1.0) == ["overload"]
    assert kinds(entropy_LH=[[0.9, 0.5]], maximum=1.0, thresholds=stricter) == []
    inputs = {"logit_max_abs_NLH": logits_of(2, 3), "steps_N": [0, 5]}
    assert kinds(**inputs, thresholds=stricter) == ["logit_growth"]
    assert kinds(dead_share_L=[0.1], thresholds=stricter) == ["dead_units"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("overload_share", 0.0, r"overload_share=0\.0 is outside \(0, 1\]"),
        ("collapse_share", 1.1, r"collapse_share=1\.1 is outside"),
        ("dead_share", float("nan"), "dead_share=nan is outside"),
        ("logit_growth", 1.0, r"logit_growth=1\.0 must be greater than 1"),
        ("logit_growth_steps", 0, "logit_growth_steps=0 must be at least 1"),
        ("logit_level", -1.0, r"logit_level=-1\.0 must not be negative"),
    ],
)
def test_thresholds_that_cannot_be(name: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AlertThresholds(**{name: value})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "nothing to look at: give entropy_LH"),
        ({"entropy_LH": HEALTHY}, "entropy_LH needs maximum"),
        ({"entropy_LH": HEALTHY, "maximum": 0.0}, "maximum must be positive"),
        ({"entropy_LH": HEALTHY, "maximum": np.nan}, "maximum must be positive, got nan"),
        ({"entropy_LH": HEALTHY[0], "maximum": 1.0}, r"entropy_LH: expected shape \[L, H\]"),
        ({"logit_max_abs_NLH": np.ones((2, 1, 1))}, "logit_max_abs_NLH needs steps_N"),
        (
            {"logit_max_abs_NLH": np.ones((2, 1, 1)), "steps_N": [3, 3]},
            r"steps_N: expected 2 steps in rising order, .* got \[3 3\]",
        ),
        (
            {"logit_max_abs_NLH": np.ones((2, 1, 1)), "steps_N": [1, 2, 3]},
            "steps_N: expected 2 steps",
        ),
        ({"dead_share_L": HEALTHY}, r"dead_share_L: expected shape \[L\]"),
    ],
)
def test_bad_input(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        alerts(**inputs)
