"""Main effects of two-level designs, and the grid of factors."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from grid_groups import group_of
from scipy import stats

from configs import width_and_start as full
from configs.factors import FACTORS, MODELS, design, get_experiment
from nfllm.analysis.factorial import cell_means, main_effects
from nfllm.experiment.factors import aliases, effects_tables, factor_sections
from nfllm.experiment.grid import expand
from nfllm.experiment.outcome import Outcome
from nfllm.report.page import Section


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


def test_means_of_cells_have_the_spread_of_all_cells() -> None:
    """Against a fit with one parameter a cell, whose residuals are those of all cells."""
    rng = np.random.default_rng(1)
    seeds_C = [2, 1, 4]
    cells = [rng.normal(0.1 * place, 0.02, n) for place, n in enumerate(seeds_C)]
    matrix = np.repeat(np.eye(3), seeds_C, axis=0)
    y = np.concatenate(cells)
    fitted, (squares,), *_ = np.linalg.lstsq(matrix, y)
    errors = np.sqrt(squares / 4 * np.diag(np.linalg.inv(matrix.T @ matrix)))
    for (mean, low, high), coefficient, error in zip(
        cell_means(cells, confidence=0.9), fitted, errors, strict=True
    ):
        assert float(mean) == pytest.approx(coefficient)
        assert float(high - low) == pytest.approx(2 * stats.t.ppf(0.95, 4) * error)


@pytest.mark.parametrize(
    "cells",
    # Sums of thirds differ in the last bit.
    [[[3.0], [1.0]], [[3.0, 3.0], [1.0, 1.0]], [[1 / 3 + 2, 7 / 3], [1 - 2 / 3, 1 / 3]]],
)
def test_seeds_without_a_spread_give_no_interval(cells: list[list[float]]) -> None:
    ((estimate, low, high),) = main_effects(np.array([[1], [-1]]), cells)
    assert estimate == pytest.approx(2.0)
    assert np.isnan([low, high]).all()
    assert np.isnan([[low, high] for _, low, high in cell_means(cells)]).all()


def test_a_huge_loss_is_an_infinite_perplexity(tmp_path: Path) -> None:
    cells, _ = sections_of(tmp_path, {**LOSSES, "high-gelu": [900.0, 901.0]})
    assert cells.blocks[0].table.rows[1][5] == np.inf


@pytest.mark.parametrize("levels", [[[1], [1]], [[1], [0]], [[2], [-2]]])
def test_levels_that_are_no_design(levels: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="as many cells at"):
        main_effects(np.array(levels), [[1.0], [2.0]])


def test_levels_and_confidence_are_checked() -> None:
    with pytest.raises(ValueError, match=r"expected \[cells, factors\], got shape \(2,\)"):
        main_effects(np.array([-1, 1]), [[1.0], [2.0]])
    cells = [[1.0, 1.2], [2.0, 2.2]]
    with pytest.raises(ValueError, match="confidence must lie between 0 and 1, got 95"):
        main_effects(np.array([[-1], [1]]), cells, confidence=95)
    with pytest.raises(ValueError, match="confidence must lie between 0 and 1, got 95"):
        cell_means(cells, confidence=95)


def test_responses_that_are_missing() -> None:
    with pytest.raises(ValueError, match="responses of 2 cells, got 1"):
        main_effects(np.array([[1], [-1]]), [[1.0]])
    with pytest.raises(ValueError, match="cell 1 has no response"):
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


CELLS = {"low": {"width": -1}, "high": {"width": 1}}
LOSSES = {"low-gelu": [4.1, 4.2], "low-relu": [4.0, 4.0]}
LOSSES |= {"high-gelu": [4.5, 4.5], "high-relu": [4.0, 4.1]}


def test_what_an_effect_is_mixed_with_is_named() -> None:
    """By hand: rate = depth width, start = depth batch, steps = -depth width batch."""
    assert aliases(design(), "width") == ["depth x learning_rate", "the opposite of init x steps"]
    assert aliases(design(), "init") == ["depth x batch", "the opposite of width x steps"]
    assert aliases(design(), "depth") == ["width x learning_rate", "batch x init"]
    assert aliases(design(), "steps") == [
        "the opposite of width x init",
        "the opposite of batch x learning_rate",
    ]
    assert aliases(design(), "width x init") == ["batch x learning_rate"]


def test_a_full_design_has_its_interaction(tmp_path: Path) -> None:
    entries = expand(full.get_experiment("cpu"))
    assert len(entries) == 4 * 2 * 2
    for name in full.FACTORS:
        assert aliases(full.design(), name) == []
    for entry in entries:
        levels = full.design()[entry.variant.rpartition("-")[0]]
        assert (entry.config.model.embed_dim == 128) == (levels["width"] > 0)
        assert (entry.config.model.block_init_std == 0.02) == (levels["init"] < 0)
    gaps = {"none": 0.1, "width": 0.4, "init": 0.2, "width_init": 0.9}
    tables = effects_tables(
        full.design(), full.FACTORS, {"loss": {cell: {0: x, 1: x} for cell, x in gaps.items()}}
    )
    effects = [row[1] for row in tables["loss"].rows]
    assert effects == pytest.approx([0.4, 0.65 - 0.15, 0.55 - 0.25, 0.5 - 0.3])


def sections_of(
    folder: Path, losses: dict[str, list[float]], outcomes: dict[str, Outcome] | None = None
) -> list[Section]:
    low_LH, high_LH = np.full((4, 4), 1.0), np.full((4, 4), 3.8)
    entropies = {name: high_LH if name == "high-gelu" else low_LH for name in losses}
    changes = {name: {"optimizer.learning_rate": 1e-4 * i} for i, name in enumerate(losses, 1)}
    group = group_of(folder, losses, entropies, extra=changes, outcomes=outcomes)
    return [*factor_sections([group], design=CELLS, factors={"width": "wider"}, pair=MODELS)]


def test_the_page_has_the_cells_and_the_effects_on_both_differences(tmp_path: Path) -> None:
    cells, effects = sections_of(tmp_path, LOSSES)
    (table,) = (block.table for block in cells.blocks)
    spread = stats.t.ppf(0.975, 2) * np.sqrt((0.1**2 / 2 + 0.1**2 / 2) / 2 / 2)
    low, high = table.rows
    assert low[:2] == ("low", 2)
    assert low[2:5] == pytest.approx((0.15, 0.15 - spread, 0.15 + spread))
    assert low[5] == pytest.approx(100 * (np.exp(0.15) - 1))
    assert [low[6:], high[6:]] == [(0.0, 0.0, "–"), (100.0, 0.0, "–")]
    loss, overload = (block.table.rows for block in effects.blocks)
    assert loss[0][1] == pytest.approx((0.1 + 0.2 + 0.5 + 0.4) / 4)
    assert loss[1][:2] == ("wider", pytest.approx(0.45 - 0.15))
    assert overload[1][1] == pytest.approx(1.0)
    expected = 2 * stats.t.sf(0.3 / (spread * np.sqrt(2) / stats.t.ppf(0.975, 2)), 2)
    assert loss[1][4] == pytest.approx(expected, rel=1e-6)
    # Two tests; the other one has no p, since equal seeds do not tell how far seeds spread.
    assert loss[1][5] == pytest.approx(2 * loss[1][4])
    assert overload[1][2:] == (*[None] * 4, "–")


def test_effects_wait_for_every_cell(tmp_path: Path) -> None:
    one_cell = {name: LOSSES[name] for name in ("low-gelu", "low-relu")}
    cells, missing = sections_of(tmp_path / "one_cell", one_cell)
    assert missing.lead.endswith("These cells have none: high.")
    assert [row[:2] for row in cells.blocks[0].table.rows] == [("low", 2), ("high", 0)]
    ended = {f"main/high-gelu/seed{seed}": Outcome("diverged", "NaN") for seed in (0, 1)}
    cells, missing = sections_of(tmp_path / "diverged", LOSSES, ended)
    assert missing.lead.endswith("These cells have none: high.")
    assert cells.blocks[0].table.rows[1] == (
        *("high", 0, None, None, None, None, None, 100.0),  # M is that of the runs that finished
        "gelu: diverged (seed 0), diverged (seed 1)",
    )
    (cells, _) = sections_of(
        tmp_path / "one_seed", LOSSES, {"main/low-relu/seed1": ended.popitem()[1]}
    )
    assert cells.blocks[0].table.rows[0][1] == 1
    assert cells.blocks[0].table.rows[0][2] == pytest.approx(0.1)
