"""Curves as the page's script and a spreadsheet get them, and several seeds as one of them."""

import csv
import io
import json

import numpy as np
import pytest
from synthetic_runs import write_run

from nfllm.report import figures
from nfllm.report.charts import curves_chart, curves_table, layers_chart, layers_table
from nfllm.report.figures import Curve, LayerCurves
from nfllm.report.regularizer_sections import regularizer_sections
from nfllm.report.runs import read_runs
from nfllm.report.seeds import data_of, seed_curve, seed_groups

STEPS = np.arange(0, 1000, 10)


def rows(table) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(table.csv())))


def chart_of(series: list[Curve], log: bool = False):
    figure = figures.curves(series, "loss (nats)", log)
    return json.loads(curves_chart(series, figure.axes[0]).json()), figure.axes[0]


def test_a_chart_has_the_numbers_colours_and_limits_of_its_figure():
    y_N = np.linspace(8.0, 4.0, 100)
    y_N[[40, 60]] = [np.inf, np.nan]
    series = [Curve("a", STEPS, y_N), Curve("b", STEPS, y_N + 1, place=9)]
    chart, axes = chart_of(series)
    assert (chart["ylabel"], chart["log"]) == ("loss (nats)", False)
    assert chart["limits"] == list(axes.get_ylim())
    first, second = chart["lines"]
    assert first["x"] == STEPS.tolist()
    assert [i for i, y in enumerate(first["y"]) if y is None] == [40, 60]
    assert first["y"][1] == pytest.approx(y_N[1], rel=1e-5)
    assert (first["bad"], second["bad"]) == (400, 400)
    assert (first["color"], second["color"]) == (
        axes.lines[0].get_color(),
        axes.lines[2].get_color(),
    )
    assert (first["dashes"], second["dashes"]) == ("", "5 3")


def test_a_chart_may_stand_in_a_script_whatever_a_run_is_called():
    name = "</script><!--"
    content = curves_chart(
        [Curve(name, STEPS, 1.0 * STEPS)], figures.curves([], "y").axes[0]
    ).json()
    assert "<" not in content
    assert json.loads(content)["lines"][0]["label"] == name


def test_layers_of_a_long_run_are_thinned_and_keep_their_means():
    x_N = np.arange(50_000)
    panel = LayerCurves("deep", x_N, np.ones((50_000, 48)) * np.arange(48), None)
    content = layers_chart(panel, figures.layer_curves([panel], "entropy").axes[0]).json()
    lines = json.loads(content)["lines"]
    assert len(content) < 400_000
    assert [line["label"] for line in lines] == [f"layer {n}" for n in range(48)]
    assert all(set(line["y"]) == {float(n)} for n, line in enumerate(lines))
    assert 160 <= len(lines[0]["x"]) <= 20_000 / 48


def test_tables_have_a_row_a_step_and_a_layer():
    series = [Curve("a", STEPS[:2], np.array([1.5, np.nan])), Curve("b", STEPS[:1], np.ones(1))]
    assert rows(curves_table(series, "loss")) == [
        {"run": "a", "step": "0", "loss": "1.5"},
        {"run": "a", "step": "10", "loss": "nan"},
        {"run": "b", "step": "0", "loss": "1.0"},
    ]
    panel = LayerCurves("a", STEPS[:2], np.array([[1.0, 2.0], [3.0, 4.0]]), None)
    assert [(r["step"], r["layer"], r["y"]) for r in rows(layers_table([panel], "y"))] == [
        ("0", "0", "1.0"),
        ("0", "1", "2.0"),
        ("10", "0", "3.0"),
        ("10", "1", "4.0"),
    ]


def test_seeds_of_one_variant_are_one_line_with_a_band(tmp_path):
    losses = {0: 3.0, 1: 3.2, 2: 3.7}
    names = [f"seed{seed}" for seed in losses]
    for seed, loss in losses.items():
        write_run(tmp_path / f"seed{seed}", {"training.seed": seed}, None, loss)
    write_run(tmp_path / "gelu", {"model.activation": "gelu"}, None, 3.1)
    write_run(tmp_path / "unfinished", {"training.seed": 3}, None, 3.3)
    path = tmp_path / "unfinished" / "metrics.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    runs = read_runs([tmp_path / name for name in ("gelu", *names, "unfinished")])
    gelu, seeds, unfinished = seed_groups(runs)
    assert (seeds.label, seeds.place, len(seeds.runs)) == ("SM+R", 1, 3)
    assert (gelu.label, gelu.place) == ("SM+G", 0)
    assert (unfinished.label, unfinished.place) == ("SM+R · unfinished", 4)
    curve = seed_curve(seeds, "eval_loss_nats")
    assert curve.label == "SM+R, 3 seeds"
    assert curve.x.tolist() == [250, 500, 750, 1000]
    last = [curve.y[-1], curve.low[-1], curve.high[-1]]
    np.testing.assert_allclose(last, [3.3, 3.0, 3.7])
    table = rows(curves_table([curve, seed_curve(gelu, "eval_loss_nats")], "loss"))
    assert (table[3]["lowest seed"], table[3]["highest seed"]) == ("3.0", "3.7")
    assert table[-1]["lowest seed"] == ""

    axes = figures.curves([curve], "loss").axes[0]
    (band,) = axes.collections
    edges = band.get_paths()[0].vertices
    assert (edges[:, 1].min(), edges[:, 1].max()) == pytest.approx((3.0, curve.high.max()))
    chart, _ = chart_of([curve])
    assert (chart["lines"][0]["low"][-1], chart["lines"][0]["high"][-1]) == (3.0, 3.7)


def test_a_seed_that_ran_twice_counts_once(tmp_path):
    for name, seed in (("a", 0), ("again", 0), ("b", 1)):
        write_run(tmp_path / name, {"training.seed": seed}, None, 3.0)
    both, again = seed_groups(read_runs([tmp_path / name for name in ("a", "again", "b")]))
    assert [run.name for run in both.runs] == ["a", "b"]
    assert [run.name for run in again.runs] == ["again"]


@pytest.mark.parametrize("key", ["data.mask_end_of_text", "evaluation.max_windows"])
def test_other_targets_are_other_data(tmp_path, key):
    changed = {"data.mask_end_of_text": True, "evaluation.max_windows": 7}
    write_run(tmp_path / "a", {}, None, 3.0)
    write_run(tmp_path / "b", {key: changed[key]}, None, 3.0)
    write_run(tmp_path / "c", {"training.seed": 1}, None, 3.0)
    a, b, c = map(data_of, read_runs([tmp_path / name for name in "abc"]))
    assert a == c
    assert a != b


@pytest.mark.parametrize(("reduction", "penalized"), [("mean", 2), ("row_sum", None)])
def test_penalized_heads_are_counted_only_where_heads_are_penalized(tmp_path, reduction, penalized):
    changes = {"objective.entropy_weight": 1e-5, "objective.entropy_reduction": reduction}
    entropy_LH = np.array([[0.1, 0.2, 2.4, 2.4]])  # of thresholds 0.5 ln 128 = 2.43, margin 0.97
    write_run(tmp_path / "a", changes, entropy_LH, 3.0)
    (section,) = regularizer_sections(read_runs([tmp_path / "a"]))
    (block,) = (block for block in section.blocks if block.name == "entropy_thresholds")
    assert block.table.rows[0][-1] == penalized
