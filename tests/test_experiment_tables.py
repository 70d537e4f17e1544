"""What the tables of an experiment say of its runs, by hand."""

import math
import types
from typing import Any

import numpy as np
import pytest

from nfllm.experiment.measured import GroupResults, Measured
from nfllm.experiment.outcome import Outcome
from nfllm.experiment.tables import entropy_table, loss_cells


def measured(status: Any, loss: float = 2.0, entropy_LH: Any = None) -> Measured:
    """A run of this status, whose metrics have these values."""
    last = {"eval_loss_nats": loss, "entropy_nats": entropy_LH}
    run: Any = types.SimpleNamespace(last=last.get)
    entry: Any = None
    return Measured(entry, Outcome(status), run, None)


def test_a_run_that_is_not_finished_has_no_result() -> None:
    entropy_LH = np.ones((1, 2))
    finished = measured("finished", 2.0, entropy_LH)
    assert finished.loss == 2.0
    assert finished.entropy is entropy_LH
    assert measured("finished", math.nan).loss is None
    for status in ("diverged", "failed", "not run"):
        assert measured(status, 2.0, entropy_LH).loss is None
        assert measured(status, 2.0, entropy_LH).entropy is None


def test_the_largest_entropy_is_that_of_all_finished_runs() -> None:
    def of(status: str, *entropies: float) -> Measured:
        return measured(status, entropy_LH=np.array([entropies]))

    a = {0: of("finished", 1.0, 2.0), 1: of("diverged", 9.0, 9.0)}
    b = {0: of("finished", math.nan, 3.0), 1: of("finished", math.nan, math.nan)}
    assert GroupResults("g", "g", {"a": a, "b": b}).maximum == 3.0
    assert GroupResults("g", "g", {"a": {1: a[1]}}).maximum is None


def test_losses_over_seeds() -> None:
    """Two seeds: Student's t of one degree is 12.7062."""
    count, mean, low, high, perplexity = loss_cells([1.0, 1.2])
    assert (count, mean) == (2, pytest.approx(1.1))
    assert [low, high] == pytest.approx([1.1 - 12.7062 * 0.1, 1.1 + 12.7062 * 0.1], rel=1e-4)
    assert perplexity == pytest.approx(math.exp(1.1))
    assert loss_cells([1.0]) == (1, 1.0, None, None, math.exp(1.0))
    assert loss_cells([]) == (0, None, None, None, None)


def test_the_middle_of_an_odd_number_of_layers_is_late() -> None:
    """M is 4: of three layers of two heads, layers 0 and 1 are overloaded, and layer 2 is not."""
    entropy_LH = np.array([[4.0, 3.5], [3.0, 2.0], [0.5, 0.5]])
    group = GroupResults("g", "g", {"a": {0: measured("finished", entropy_LH=entropy_LH)}})
    (row,) = entropy_table(group).rows
    assert row[0] == "a"
    np.testing.assert_allclose(row[1:], [13.5 / 6, 100, 25, 50, 100 / 3], rtol=1e-6)
