"""Learning rates by hand, against optax, and within their bounds."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfllm.config import Config, ConfigError, get_config
from nfllm.training.schedules import make_schedule, warmup_length

DEFAULT = Config.from_dict(get_config()).optimizer


def rates(total_steps, steps=None, **changes):
    config = dataclasses.replace(DEFAULT, **changes)
    steps = np.arange(total_steps + 1) if steps is None else np.asarray(steps)
    return np.asarray(jax.vmap(make_schedule(config, total_steps))(jnp.asarray(steps, jnp.int32)))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # Two steps of warmup to 1, then four to 0.2: r = 1, 3/4, 1/2, 1/4, 0.
        (
            {"schedule": "polynomial", "warmup_from_zero": True},
            [0.0, 0.5, 1.0, 0.8, 0.6, 0.4, 0.2],
        ),
        (
            {"schedule": "polynomial", "schedule_power": 2.0},
            [0.5, 1.0, 1.0, 0.2 + 0.8 * 9 / 16, 0.4, 0.25, 0.2],
        ),
        (
            {"schedule": "cosine", "warmup_from_zero": False},
            [0.5, 1.0, 1.0, 0.6 + 0.4 * math.sqrt(0.5), 0.6, 0.6 - 0.4 * math.sqrt(0.5), 0.2],
        ),
        ({"schedule": "constant"}, [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_by_hand(changes, expected):
    found = rates(6, learning_rate=1.0, final_learning_rate=0.2, warmup_steps=2, **changes)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("total", [7, 100, 1000])
@pytest.mark.parametrize("warmup", [1, 5])
def test_against_optax(total, warmup):
    steps = np.arange(total + 5)
    common = {"learning_rate": 3e-3, "final_learning_rate": 1e-4, "warmup_steps": warmup}
    cosine = optax.warmup_cosine_decay_schedule(0.0, 3e-3, warmup, total, 1e-4)
    linear = optax.join_schedules(
        [
            optax.linear_schedule(0.0, 3e-3, warmup),
            optax.polynomial_schedule(3e-3, 1e-4, 1.5, total - warmup),
        ],
        [warmup],
    )
    for theirs, changes in (
        (cosine, {"schedule": "cosine"}),
        (linear, {"schedule": "polynomial", "schedule_power": 1.5}),
    ):
        found = rates(total, steps, warmup_from_zero=True, **common, **changes)
        np.testing.assert_allclose(found, jax.vmap(theirs)(steps), rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("fraction", "total", "expected"),
    [(0.05, 30, 2), (0.05, 100, 5), (0.05, 101, 6), (0.0, 9, 0), (0.05, 1, 0), (1.0, 9, 8)],
)
def test_a_warmup_fraction_is_rounded_up_but_leaves_a_step(fraction, total, expected):
    config = dataclasses.replace(DEFAULT, warmup_fraction=fraction)
    assert warmup_length(config, total) == expected
    assert warmup_length(dataclasses.replace(DEFAULT, warmup_steps=3), total) == 3


def test_the_end_of_a_long_run_is_exact():
    """A million steps: float32 must not lose the last ones."""
    total = 1_000_000
    found = rates(
        total,
        [total - 2, total - 1, total, total + 1],
        schedule="polynomial",
        learning_rate=1.0,
        final_learning_rate=0.0,
        warmup_steps=0,
    )
    np.testing.assert_allclose(found, [2e-6, 1e-6, 0, 0], rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["polynomial", "cosine", "constant"]),
    st.integers(1, 300),
    st.floats(0, 0.9),
    st.floats(0.1, 4.0),
    st.booleans(),
)
def test_bounds(schedule, total, fraction, power, from_zero):
    warmup = int(fraction * total)
    found = rates(
        total,
        np.arange(301),  # one shape, compiled once
        schedule=schedule,
        schedule_power=power if schedule == "polynomial" else 1.0,
        learning_rate=1.0,
        final_learning_rate=0.125,
        warmup_steps=warmup,
        warmup_from_zero=from_zero,
    )[: total + 1]
    rounding = 5e-7
    assert np.all(found <= 1 + rounding)
    assert np.all(np.diff(found[: warmup + 1]) >= -rounding)
    assert np.all(np.diff(found[warmup:]) <= rounding)
    last = 1.0 if schedule == "constant" else 0.125
    np.testing.assert_allclose(found[[warmup, -1]], [1.0, last], rtol=rounding)


@pytest.mark.parametrize("warmup", [10, 11])
def test_warmup_that_leaves_no_decay_is_refused(warmup):
    values = get_config()
    values.optimizer.warmup_steps, values.training.steps = warmup, 10
    with pytest.raises(
        ConfigError, match=rf"optimizer\.warmup_steps={warmup} leaves no step of training\.steps=10"
    ):
        Config.from_dict(values)
    values.optimizer.schedule = "constant"
    Config.from_dict(values)
