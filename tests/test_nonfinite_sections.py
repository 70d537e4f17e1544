"""The onset of non-finite values as the report tells it, from the lines that a run wrote."""

import numpy as np

from nfllm.report.nonfinite_sections import nonfinite_sections
from nfllm.report.runs import read_runs
from nfllm.rundir.metrics import MetricsWriter


def write_lines(run, probes=(), events=()):
    with MetricsWriter(run) as metrics:
        for step, fields in probes:
            metrics.write("telemetry", step, **fields)
        for step, fields in events:
            metrics.write("event", step, event="non_finite", message="", **fields)
    return run


def tables(*runs):
    (section,) = nonfinite_sections(read_runs(runs))
    found = {block.name: getattr(block, "table", None) for block in section.blocks}
    return {name: table.rows for name, table in found.items() if table is not None}


def test_the_first_is_first_in_step_then_layer_then_site(tmp_path):
    late = np.array([[0, 0, 0], [0, 0, 0], [9, 9, 9]])
    counts = {
        "mlp_out": late,
        "residual": np.array([[0, 0, 0, 0], [0, 0, 2, 4], [1, 1, 1, 1]]),
        "mlp_pre": np.array([[0, 0, 0], [0, 7, 0], [9, 9, 9]]),
        "mlp_post": np.array([[0, 0, 0], [0, 8, 0], [9, 9, 9]]),
        "attention_logits": np.array([[0, 0, 0], [0, 0, 3], [9, 9, 9]]),
    }
    only_last = {"residual": np.array([[0, 0, 0, 5]] * 3), "mlp_out": np.zeros((3, 3), int)}
    healthy = {"residual": np.zeros((3, 4), int)}
    runs = [
        write_lines(
            tmp_path / name,
            [(50 * n, {"nonfinite": {s: c[n] for s, c in found.items()}}) for n in range(3)],
        )
        for name, found in {"a": counts, "b": only_last, "c": healthy}.items()
    ]
    assert tables(*runs, write_lines(tmp_path / "d"))["first_nonfinite"] == (
        ("a", 50, "probe", "mlp_pre", 1, 7),
        ("b", 0, "probe", "residual", 3, 5),
        ("c", None, None, "none in 3 probes", None, 0),
        ("d", None, None, "not recorded", None, None),
    )


def test_steps_that_were_gone_back_behind_do_not_count(tmp_path):
    fault = {"event": "non_finite", "message": "", "site": "mlp_pre", "layer": 1, "nan": 3}
    begins = {"a": (0, "started"), "b": (40, "resumed"), "c": (60, "resumed")}
    for name, (step, event) in begins.items():
        with MetricsWriter(tmp_path / name) as metrics:
            metrics.write("event", 50, **fault)
            metrics.write("event", step, event=event, message="")
            metrics.write("telemetry", 60, nonfinite={"residual": [0, 0, 0]})
    assert tables(*(tmp_path / name for name in "abc"))["first_nonfinite"] == (
        ("a", None, None, "none in 1 probes", None, 0),
        ("b", None, None, "none in 1 probes", None, 0),
        ("c", 50, "training", "mlp_pre", 1, 3),
    )


def test_counts_are_saved_as_a_table(tmp_path):
    counts = {"residual": np.array([0, 2, 0]), "mlp_pre": np.array([1, 0])}
    assert tables(write_lines(tmp_path / "a", [(50, {"nonfinite": counts})]))["nonfinite"] == (
        ("a", 50, "residual", 1, 2),
        ("a", 50, "mlp_pre", 0, 1),
    )


def test_a_training_step_comes_before_the_probes_that_see_what_it_left(tmp_path):
    sound = {"residual": [0, 0, 0], "attention_logits": [0, 0], "mlp_pre": [0, 0]}
    broken = sound | {"mlp_pre": [4, 4]}
    probes = [
        (
            step,
            {
                "nonfinite": broken if step == 600 else sound,
                "logit_max_abs": [[2.0 * step, 1.0], [0.5, step / 2]],
                "residual_max_abs": [1.0, 3.0 * step, 0.0],
            },
        )
        for step in (0, 100, 200, 300, 400, 500, 600)
    ]
    kinds = {"nan": 1, "positive_inf": 20, "negative_inf": 300, "size": 9999}
    events = [
        (300, {}),  # of a version that did not tell the site
        (600, {"site": "gradients", "layer": 1} | kinds),
        (601, {"site": "residual", "layer": 0} | kinds),
    ]
    found = tables(write_lines(tmp_path / "run", probes, events))
    assert found["first_nonfinite"] == (("run", 600, "training", "gradients", 1, 321),)
    assert found["before_nonfinite"] == tuple(
        ("run", step, max(2.0 * step, 1.0), max(3.0 * step, 1.0))
        for step in (100, 200, 300, 400, 500)
    )


def test_sites_without_layers_and_probes_without_sizes_are_shown(tmp_path):
    loss = {"site": "loss", "layer": None, "nan": 2, "positive_inf": 0, "negative_inf": 0}
    alone = write_lines(tmp_path / "alone", events=[(7, loss)])
    old = write_lines(tmp_path / "old", [(0, {"nonfinite": {"mlp_pre": [0]}})], [(7, loss)])
    found = tables(alone, old)
    assert found["first_nonfinite"] == (
        ("alone", 7, "training", "loss", None, 2),
        ("old", 7, "training", "loss", None, 2),
    )
    assert found["before_nonfinite"] == (("old", 0, None, None),)


def test_runs_that_recorded_nothing_have_no_section(tmp_path):
    assert list(nonfinite_sections(read_runs([write_lines(tmp_path / "run")]))) == []
