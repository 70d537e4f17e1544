"""The page of a grid of a user's own, and the tables of the paper's on the same mechanism."""

import dataclasses
import json
import re

import numpy as np
import pytest
from grid_groups import group_of, write_entry
from page_checks import check

from nfllm.config import ConfigError, get_config
from nfllm.experiment import Experiment, Group, Variant
from nfllm.experiment.cause import Cause
from nfllm.experiment.grid import expand, load_experiment
from nfllm.experiment.measured import read_group
from nfllm.experiment.outcome import Outcome
from nfllm.experiment.provenance import Provenance, read_provenance
from nfllm.experiment.results import results_markdown
from nfllm.experiment.sections import comparison_sections
from nfllm.experiment.slots import Machine, Slot
from nfllm.experiment.tables import comparison_table, shown_runs, varying_keys
from nfllm.experiment.write import write_results
from nfllm.papers.published import REFERENCE
from nfllm.papers.sections import paper_sections

LOSSES = {
    "relu_1e-3": [4.0, 4.1, 4.2],
    "relu_3e-3": [3.9, 3.7, 3.8],
    "silu_1e-3": [4.3, 4.4, 4.2],
    "silu_3e-3": [5.0, 5.0, 5.0],
}


def own_grid() -> Experiment:
    """Learning rate x activation, with seeds."""
    variants = {
        f"{activation}_{name}": Variant(
            {"model.activation": activation, "optimizer.learning_rate": rate}, (0, 1, 2)
        )
        for activation in ("relu", "silu")
        for name, rate in (("1e-3", 1e-3), ("3e-3", 3e-3))
    }
    return Experiment("My question.", {"mine": Group("Rates", get_config(), variants)})


def measured_groups(out, experiment, losses, outcomes=None):
    """Entries, outcomes and groups of an experiment whose runs have these losses by seed."""
    entries = expand(experiment)
    for entry in entries:
        write_entry(out, entry, losses)
    found = {e.name: (outcomes or {}).get(e.name, Outcome("finished")) for e in entries}
    groups = [
        read_group(name, group.title, [e for e in entries if e.group == name], found, out)
        for name, group in experiment.groups.items()
    ]
    return entries, found, groups


def markdown(out, experiment, losses, outcomes=None):
    entries, found, groups = measured_groups(out, experiment, losses, outcomes)
    sections = list((experiment.sections or comparison_sections)(groups))
    return results_markdown(experiment, groups, sections, entries, found, [])


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The page and RESULTS.md of a grid of a user's own."""
    out = tmp_path_factory.mktemp("own")
    entries, outcomes, _ = measured_groups(out, own_grid(), LOSSES)
    page, results = write_results(own_grid(), entries, outcomes, out)
    return page.read_text(), results.read_text()


def test_what_a_recipe_has_changed_and_what_has_no_entropy_is_said(tmp_path):
    extra = {
        "tuned": {
            "training.recipe": "helu",
            "model.activation": "helu",
            "model.helu_margin": 0.05,
        },
        "linear": {"model.mixer": "regla", "model.normalization": "layernorm"},
    }
    group = group_of(tmp_path, {"tuned": [4.0], "linear": [3.9]}, extra=extra)
    leads = {section.title: section.lead for section in comparison_sections([group])}
    said = "tuned: recipe helu changed: model.helu_margin=0.05 (published: 0.001)."
    assert said in leads["Comparison"]
    assert "Not defined for linear: their mixer has no softmax." in leads["Overloaded heads"]


def test_a_grid_of_ones_own_is_compared_by_the_keys_in_which_it_varies(own):
    for text in own:
        for wanted in ("Comparison", "model.activation", "optimizer.learning_rate", "Rates"):
            assert wanted in text.replace("<wbr>", "")
        assert "The best run is mine/relu_3e-3/seed1, with 3.7000 nats" in text
        assert "My question." in text
        for alien in ("ublished", "erdict", "paper", "sm+", "SM+", "linear fits"):
            assert alien not in text, alien
    page, results = own
    check(page)
    # Seeds 0 to 2 of 3.9, 3.7, 3.8: mean 3.8, half-width 4.303 x 0.1 / sqrt(3).
    start = "| relu_3e-3 | norm-free, final normalised | relu | 0.003 | 3 |"
    assert f"{start} 3.8000 | 3.5516 | 4.0484 | 44.70 |" in results
    assert "did not finish" not in results


def test_no_heading_stands_over_nothing(own):
    page, results = own
    lines = [line for line in results.splitlines() if line]
    for line, following in zip(lines, [*lines[1:], "# end"], strict=True):
        depth = len(line) - len(line.lstrip("#"))
        if depth:
            under = len(following) - len(following.lstrip("#"))
            assert not under or under > depth, line
    assert "<div class=blocks>\n\n</div>" not in page


def test_figures_name_the_variants(own):
    for variant in LOSSES:
        assert own[0].count(variant) > 2


def test_losses_are_those_of_all_seeds(own):
    charts = re.findall(r"<script type=application/json>(.*?)</script>", own[0])
    (loss,) = (chart for chart in map(json.loads, charts) if chart["ylabel"].startswith("eval"))
    ends = {line["label"]: (line["low"][-1], line["high"][-1]) for line in loss["lines"]}
    assert ends == {f"{name}, 3 seeds": (min(v), max(v)) for name, v in LOSSES.items()}
    assert "the line is the mean and the band goes from the lowest to the highest" in own[0]


def test_runs_of_other_targets_have_no_best(tmp_path):
    variants = {f"T{n}": Variant({"model.context_length": n}) for n in (64, 128)}
    experiment = Experiment("", {"main": Group("", get_config(), variants)})
    content = markdown(tmp_path, experiment, {name: [4.0] for name in variants})
    assert "No best run is named: the runs differ in model.context_length" in content


def test_what_did_not_finish_is_named(tmp_path):
    outcomes = {"mine/relu_1e-3/seed1": Outcome("diverged", "NaN at step 9")}
    content = markdown(tmp_path, own_grid(), LOSSES, outcomes)
    assert "| relu_1e-3 | norm-free, final normalised | relu | 0.001 | 2 | 4.1000 |" in content
    assert "diverged (seed 1)" in content


def test_heads_of_other_context_lengths_are_not_compared(tmp_path):
    variants = {f"T{n}": Variant({"model.context_length": n}) for n in (64, 128)}
    experiment = Experiment("", {"main": Group("Lengths", get_config(), variants)})
    content = markdown(tmp_path, experiment, {name: [4.0] for name in variants})
    assert "heads ≥ 3M/4" not in content
    _, _, groups = measured_groups(tmp_path, experiment, {name: [4.0] for name in variants})
    (lead,) = (s.lead for s in comparison_sections(groups) if s.title == "Overloaded heads")
    assert "Left out for Lengths: with the context length M differs." in lead


def test_nothing_of_a_run_that_failed_is_shown(tmp_path):
    """Its directory may hold another run. An unfinished one has no measurement at its end."""
    cause = json.dumps(dataclasses.asdict(Cause(9, 4.0, [4.0], 4, 4, 4, [1.0], [1.0], [1.0], 9)))
    failed = Outcome("failed", "its directory holds another run", blocked=True)
    outcomes = {"main/sm+g/seed0": failed, "main/sm+r/seed0": Outcome("not run")}
    group = group_of(
        tmp_path,
        {"sm+g": [4.1], "sm+r": [4.0]},
        causes={"sm+g": cause, "sm+r": cause},
        outcomes=outcomes,
    )
    gelu, relu = (group.variants[name][0] for name in ("sm+g", "sm+r"))
    assert gelu.run is gelu.cause is relu.cause is None
    assert relu.run is not None
    assert [run.entry.variant for run in shown_runs(group)] == ["sm+r"]


def test_a_run_that_two_variants_share_is_shown_by_the_name_of_the_first(tmp_path):
    variants = {name: Variant({}, seeds) for name, seeds in (("first", (0, 1)), ("again", (0,)))}
    experiment = Experiment("", {"main": Group("", get_config(), variants)})
    entries, outcomes, _ = measured_groups(
        tmp_path, experiment, {"first": [4.0, 4.2], "again": [4.0]}
    )
    page, _ = write_results(experiment, entries, outcomes, tmp_path)
    charts = re.findall(r"<script type=application/json>(.*?)</script>", page.read_text())
    (loss,) = (c for c in map(json.loads, charts) if c["ylabel"].startswith("eval"))
    assert [line["label"] for line in loss["lines"]] == ["first, 2 seeds"]


def test_keys_that_vary_are_those_of_the_configs(tmp_path):
    group = group_of(tmp_path, {"sm+g": [4.1, 4.0], "sm+r": [4.0, 4.0]})
    assert varying_keys(group) == ["model.activation"]
    columns = [column.title for column in comparison_table(group).columns]
    assert columns[:4] == ["variant", "normalization", "model.activation", "seeds"]


def test_many_keys_share_a_column_of_what_is_uncommon(tmp_path):
    changes = {
        "model.num_layers": 2,
        "model.num_heads": 8,
        "model.embed_dim": 256,
        "model.context_length": 64,
        "training.batch_size": 2,
        "optimizer.learning_rate": 0.002,
        "optimizer.beta1": 0.45,
        "optimizer.beta2": 0.5,
        "optimizer.epsilon": 0.25,
    }
    plain = {"model.activation": "relu"}  # the default
    extra = {"plain": plain, "also": plain, "one": {"model.num_heads": 8}, "all": changes}
    group = group_of(tmp_path, {name: [4.0] for name in extra}, extra=extra)
    assert len(varying_keys(group)) == 9
    table = comparison_table(group)
    assert table.columns[2].title == "keys not at their most common value"
    found = {row[0]: row[2] for row in table.rows}
    assert (found["plain"], found["also"], found["one"]) == ("–", "–", "model.num_heads=8")
    assert found["all"].count("=") == 9
    assert "optimizer.beta1=0.45" in found["all"]


def test_the_papers_grid_has_its_verdicts_and_published_numbers(tmp_path):
    names = {"sm+g": "gelu", "sm+r": "relu"}
    variants = {
        name: Variant({"model.normalization": "none", "model.activation": activation}, (0, 1))
        for name, activation in names.items()
    }
    experiment = Experiment(
        "", {"main": Group("Two", get_config(), variants)}, paper_sections, REFERENCE
    )
    losses = {"sm+g": [4.1, 4.11], "sm+r": [4.0, 4.01]}
    content = markdown(tmp_path, experiment, losses)
    for wanted in ("Verdicts", "published perplexity", "after Holm", "through training"):
        assert wanted in content
    assert "## Effects through training" not in content  # pictures only
    sections = {found.title: found for found in paper_sections([groups_of(tmp_path, experiment)])}
    (drawn,) = sections["Effects through training"].blocks
    # Every claim that two models of two seeds can speak to, with a band at each evaluation.
    titles = [" ".join(axes.get_title(loc="left").split()) for axes in drawn.whole.axes]
    assert titles == [
        "Without LayerNorm, ReLU is better than GELU",
        "Early layers of norm-free GELU are overloaded",
        "Early layers of norm-free GELU are more overloaded than ReLU's",
        "Over all layers, norm-free GELU is more overloaded",
    ]
    assert all(axes.collections for axes in drawn.whole.axes)
    first = [row for row in drawn.table.rows if row[0] == titles[0]]
    np.testing.assert_array_equal(
        [row[1] for row in first], drawn.whole.axes[0].lines[0].get_xdata()
    )
    assert first[-1][2] == pytest.approx(0.1)  # of both seeds


def groups_of(out, experiment):
    entries = expand(experiment)
    found = {entry.name: Outcome("finished") for entry in entries}
    return read_group("main", "Two", entries, found, out)


def record(out, grid, overrides=()):
    machine = Machine("a machine", (Slot({}),))
    with Provenance.record(out, grid, "some", machine, overrides):
        pass
    return read_provenance(out)[-1]


def test_provenance_names_the_file_and_the_values(tmp_path, monkeypatch):
    grid = tmp_path / "studies" / "rates.py"
    grid.parent.mkdir()
    grid.write_text("SCALES = ()\n")
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.chdir(tmp_path)
    overrides = ["--config.training.steps=7", "--config.data.sources=a b/*.py"]
    found = record(out, grid, overrides)
    assert found.command == (
        "python -m nfllm.experiment studies/rates.py --scale some --config.training.steps=7 "
        "'--config.data.sources=a b/*.py'"
    )
    assert (out / "grid.py").read_text() == grid.read_text()
    monkeypatch.chdir(out)
    assert record(out, grid).grid == "studies/rates.py"  # no path of a machine
    assert len(read_provenance(out)) == 2


def test_provenance_of_an_earlier_version_is_read(tmp_path):
    new = record(tmp_path, *[tmp_path / "g.py" for _ in [(tmp_path / "g.py").write_text("")]])
    values = dataclasses.asdict(new)
    del values["grid"], values["grid_sha256"]
    (tmp_path / "provenance.json").write_text(json.dumps([values]))
    (read,) = read_provenance(tmp_path)
    assert (read.grid, read.command) == ("", new.command)


def test_provenance_of_a_later_version_is_left_out_and_kept(tmp_path):
    (tmp_path / "g.py").write_text("")
    old = dataclasses.asdict(record(tmp_path, tmp_path / "g.py"))
    later = {**old, "moon": "full"}
    (tmp_path / "provenance.json").write_text(json.dumps([old, later, old]))
    assert len(read_provenance(tmp_path)) == 2
    record(tmp_path, tmp_path / "g.py")
    assert len(read_provenance(tmp_path)) == 3
    assert json.loads((tmp_path / "provenance.json").read_text())[:3] == [old, later, old]


def test_a_grid_imports_what_stands_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rates_of_mine.py").write_text("RATES = (1e-3,)\n")
    grid = tmp_path / "grid.py"
    grid.write_text(
        "from rates_of_mine import RATES\n"
        "from nfllm.config import get_config\n"
        "from nfllm.experiment import Experiment, Group, Variant\n"
        "SCALES = ('only',)\n"
        "def get_experiment(scale):\n"
        "    variants = {f'{r:g}': Variant({'optimizer.learning_rate': r}) for r in RATES}\n"
        "    return Experiment('', {'main': Group('', get_config(), variants)})\n"
    )
    (entry,) = expand(load_experiment(grid, "only"))
    assert entry.name == "main/0.001/seed0"
    grid.write_text("import nothing_of_that_name\n")
    with pytest.raises(
        ConfigError, match=r"grid.py cannot be read as a grid \(line 1: ModuleNotFound"
    ):
        load_experiment(grid, "only")


def test_a_group_without_a_finished_run_says_so(tmp_path):
    entries = expand(own_grid())
    outcomes = {entry.name: Outcome("not run", "it has not started") for entry in entries}
    group = read_group("mine", "Rates", entries, outcomes, tmp_path)
    (section,) = comparison_sections([group])
    assert "No run has finished." in section.lead
    assert np.shape(comparison_table(group).rows) == (4, 10)
