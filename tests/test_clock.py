"""The speed of training and the time left: what the first step and pauses count for."""

import math

import pytest

from nfllm.trainer import clock as module
from nfllm.trainer.clock import Clock


@pytest.fixture
def time_goes_by(monkeypatch):
    now = 0.0

    def sleep(seconds):
        nonlocal now
        now += seconds

    monkeypatch.setattr(module.time, "perf_counter", lambda: now)
    return sleep


def test_the_first_step_compiles_and_counts_for_nothing(time_goes_by):
    clock = Clock(tokens_per_step=512)
    time_goes_by(120.0)  # compiles
    clock.tick()
    assert math.isnan(clock.seconds_left(31_999))
    assert math.isnan(clock.tokens_per_second)
    for _ in range(24):
        time_goes_by(0.5)
        clock.tick()
    assert clock.seconds_left(100) == pytest.approx(50.0)
    assert clock.tokens_per_second == pytest.approx(1024.0)
    assert clock.seconds_left(0) == 0.0


def test_a_pause_makes_the_end_later_but_training_no_slower(time_goes_by):
    clock = Clock(tokens_per_step=512)
    clock.tick()
    for _ in range(10):
        time_goes_by(1.0)
        clock.tick()
        with clock.paused():
            time_goes_by(0.25)  # an evaluation
    assert clock.tokens_per_second == pytest.approx(512.0)
    assert clock.seconds_left(100) == pytest.approx(125.0)
    assert clock.elapsed == pytest.approx(12.5)
