"""Main effects of two-level designs, and the grid of factors."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from grid_groups import group_of
from scipy import stats

from configs.factors import FACTORS, MODELS, design, get_experiment
from nfllm.experiment.factors import factor_sections, main_effects
from nfllm.experiment.grid import expand


def test_effects_are_those_of_least_squares() -> None:
    """In a design with as many cells as combinations, against a fit of all interactions."""
    rng = np.random.default_rng(0)
    levels_CF = np.array(list(itertools.product((-1, 1), repeat=3)))
    seeds_C = [2, 3, 2, 2, 4, 2, 2, 3]
    true = levels_CF @ [0.3, 0.0, -0.1] + 0.2 * levels_CF[:, 0] * levels_CF[:, 1]
    responses = [rng.normal(mean, 0.05, n) for mean, n in zip(true, seeds_C, strict=True)]
    products = [
        levels_CF[:, list(chosen)].prod(axis=1)
        for size in range(4)
        for chosen in itertools.combinations(range(3), size)
    ]
    matrix = np.repeat(np.array(products).T, seeds_C, axis=0)
    y = np.concatenate(responses)
    fitted, (squares,), *_ = np.linalg.lstsq(matrix, y)
    degrees = len(y) - 8
    errors = np.sqrt(squares / degrees * np.diag(np.linalg.inv(matrix.T @ matrix)))
    found = main_effects(levels_CF, responses)
    for factor, (estimate, low, high) in enumerate(found):
        index = 1 + factor  # after the mean
        half = stats.t.ppf(0.975, degrees) * 2 * errors[index]
        assert float(estimate) == pytest.approx(2 * fitted[index])
        assert float(high - low) == pytest.approx(2 * half)


def test_one_seed_a_cell_gives_no_interval() -> None:
    ((estimate, low, high),) = main_effects(np.array([[1], [-1]]), [[3.0], [1.0]])
    assert estimate == 2.0
    assert np.isnan([low, high]).all()


@pytest.mark.parametrize("levels", [[[1], [1]], [[1], [0]], [[2], [-2]]])
def test_levels_that_are_no_design(levels: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="as many cells at"):
        main_effects(np.array(levels), [[1.0], [2.0]])


def test_responses_that_are_missing() -> None:
    with pytest.raises(ValueError, match="responses of 2 cells"):
        main_effects(np.array([[1], [-1]]), [[1.0], []])


def test_the_design_confounds_no_two_main_effects() -> None:
    levels_CF = np.array([[levels[name] for name in FACTORS] for levels in design().values()])
    np.testing.assert_array_equal(levels_CF.T @ levels_CF, 8 * np.eye(len(FACTORS)))
    entries = expand(get_experiment("cpu"))
    assert len(entries) == 8 * 2 * 2
    assert all(entry.same_as is None for entry in entries)
    largest = {"depth": 1, "width": 1, "batch": 1}
    assert [c["steps"] for c in design().values() if largest.items() <= c.items()] == [-1]
    for entry in entries:
        levels = design()[entry.variant.rpartition("-")[0]]
        model, training = entry.config.model, entry.config.training
        assert (model.num_layers == 16) == (levels["depth"] > 0)
        assert (model.embed_dim == 128) == (levels["width"] > 0)
        assert (training.batch_size == 16) == (levels["batch"] > 0)
        assert (entry.config.optimizer.learning_rate == 1e-3) == (levels["learning_rate"] > 0)
        assert (training.steps == 32_000) == (levels["steps"] > 0)
        assert (model.block_init_std == 0.02) == (levels["init"] < 0)


def test_the_page_has_the_effects_on_both_differences(tmp_path: Path) -> None:
    cells = {"low": {"width": -1}, "high": {"width": 1}}
    losses = {"low-gelu": [4.1, 4.2], "low-relu": [4.0, 4.0]}
    losses |= {"high-gelu": [4.5, 4.5], "high-relu": [4.0, 4.1]}
    low_LH, high_LH = np.full((4, 4), 1.0), np.full((4, 4), 3.8)
    entropies = {"low-gelu": low_LH, "low-relu": low_LH, "high-gelu": high_LH, "high-relu": low_LH}
    changes = {name: {"optimizer.learning_rate": 1e-4 * i} for i, name in enumerate(losses, 1)}
    group = group_of(tmp_path, losses, entropies, extra=changes)
    (section,) = factor_sections([group], design=cells, factors={"width": "wider"}, pair=MODELS)
    loss, overload = (block.table.rows for block in section.blocks)
    assert loss[0][1] == pytest.approx((0.1 + 0.2 + 0.5 + 0.4) / 4)
    assert loss[1][:2] == ("wider", pytest.approx(0.45 - 0.15))
    assert overload[1][1] == pytest.approx(1.0)
    unfinished = group_of(tmp_path / "part", {"low-gelu": [4.1], "low-relu": [4.0]}, extra=changes)
    assert not list(
        factor_sections([unfinished], design=cells, factors={"width": "wider"}, pair=MODELS)
    )
