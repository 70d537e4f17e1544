"""The grid of recipes: every variant differs in what its name says, and page tables by hand."""

import dataclasses

import numpy as np
import pytest

from configs.recipes import OF_TRAINING, RECIPES, SCALES, get_experiment
from nfllm.config import differences
from nfllm.experiment.grid import Entry, expand
from nfllm.experiment.measured import GroupResults, Measured
from nfllm.experiment.outcome import Outcome
from nfllm.experiment.speed import saturation_table, speed_table
from nfllm.report.runs import ReportedRun
from nfllm.rundir.metrics import Metrics


def test_every_recipe_is_another_model_and_nothing_but_it() -> None:
    for scale in SCALES:
        entries = expand(get_experiment(scale))
        seeds = {entry.seed for entry in entries}
        assert len(entries) == len(seeds) * (len(RECIPES) + len(OF_TRAINING))
        assert not any(entry.same_as for entry in entries)
        first = entries[0].config
        for entry in entries:
            changed = set(differences(first, entry.config)) - {"training.seed"}
            if entry.variant in RECIPES:
                assert all(key.startswith("model.") for key in changed)
            assert entry.linear_replacement == (entry.config.model.mlp == "two_layer")


def test_labels_follow_from_the_parts() -> None:
    labels = {e.variant: e.config.model.statistics for e in expand(get_experiment("cpu"))}
    assert labels["ln_gelu"] == labels["evonorm_s0"] == labels["op_block"] == "normalised"
    assert labels["dyt"] == labels["derf"] == "norm-free"
    assert labels["weight_norm"] == labels["free_relu"] == "norm-free, final normalised"


def measured(entry: Entry, series: dict[str, np.ndarray]) -> Measured:
    steps = np.array([1, 2])
    run = ReportedRun(
        name=entry.name,
        label=entry.variant,
        record=None,
        metrics=Metrics(rows={}, warnings=[]),
        series={name: (steps, values) for name, values in series.items()},
        nonfinite=None,
        corpus={},
        warnings=(),
    )
    return Measured(entry, Outcome("finished"), run, None)


@pytest.fixture
def group() -> GroupResults:
    entries = expand(get_experiment("minute"))
    plain, point = (next(e for e in entries if e.variant == name) for name in ("ln_gelu", "dyt"))
    return GroupResults(
        "main",
        "Recipes",
        {
            "ln_gelu": {
                0: measured(plain, {"tokens_per_second": np.array([100.0, 300.0])}),
                # The first step after a start has no speed.
                1: measured(plain, {"tokens_per_second": np.array([np.nan, 200.0])}),
            },
            "dyt": {
                0: measured(
                    point,
                    {
                        "tokens_per_second": np.array([50.0, 150.0]),
                        "saturation_mlp": np.array([[0.9, 0.9], [0.1, 0.3]]),
                        "saturation_final": np.array([0.0, 0.5]),
                    },
                )
            },
        },
    )


def test_speeds_are_medians_against_the_first_variant(group: GroupResults) -> None:
    assert speed_table(group).rows == (("ln_gelu", 200.0, 1.0), ("dyt", 100.0, 2.0))


def test_only_finished_runs_count(group: GroupResults) -> None:
    stopped = dataclasses.replace(group.variants["dyt"][0], outcome=Outcome("not run"))
    seeds = {"dyt": {**group.variants["dyt"], 1: stopped}}
    both = dataclasses.replace(group, variants={**group.variants, **seeds})
    assert saturation_table(both) == saturation_table(group)
    alone = dataclasses.replace(group, variants={"dyt": {1: stopped}})
    assert not saturation_table(alone).rows


def test_saturation_is_that_of_the_last_probe(group: GroupResults) -> None:
    ((variant, attention, mlp, final),) = saturation_table(group).rows
    assert (variant, attention, final) == ("dyt", None, 50.0)
    assert mlp == pytest.approx(20.0)
