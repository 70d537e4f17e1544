"""What a report measures on request: how much each head matters, and the checkpoints of a run."""

import csv
import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from page_checks import cells, check
from test_figures import assert_readable
from tiny import make_corpus, tiny_config

import nfllm
from nfllm.analysis import Interval
from nfllm.report import checkpoint_sections, importance_figure
from nfllm.report.__main__ import main
from nfllm.report.importance import importance_panels
from nfllm.trainer.checkpoints import Checkpoints
from nfllm.trainer.program import Program
from nfllm.trainer.record import write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """An untrained run with checkpoints of steps 3 and 5, of which the second is another model."""
    folder = tmp_path_factory.mktemp("kept")
    config = tiny_config(make_corpus(folder / "corpus"), folder / "data", checkpoint__keep=3)
    program, path = Program(config), folder / "run"
    path.mkdir()
    state = program.init_state()
    write_run(path, program, state.params)
    with Checkpoints(path, config.checkpoint) as checkpoints:
        for step, scale in ((3, 1.0), (5, 4.0)):
            params = jax.tree.map(lambda x, scale=scale: scale * x, state.params)
            changed = dataclasses.replace(state, step=state.step * 0 + step, params=params)
            whole = program.placement.to_checkpoint(changed)
            checkpoints.save(whole, program.dataset.fingerprint)
            checkpoints.wait()
    return path


def rows_of(report: Path, name: str) -> list[dict[str, str]]:
    with (report / "tables" / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def entropy_of(run) -> np.ndarray:
    """[L, H] over the validation split, as a user would compute it."""
    tokens = np.concatenate([b.tokens[(b.labels >= 0).any(1)] for b in run.validation_batches()])
    captured = nfllm.capture(run.model, run.params, tokens)
    entropy_LBHT = nfllm.analysis.attention_entropy(captured.attention_probs)
    return np.asarray(nfllm.analysis.head_entropy(entropy_LBHT).mean(1))


@pytest.mark.slow
def test_heads_and_kept_steps_are_measured_on_request(run, tmp_path, monkeypatch):
    monkeypatch.setattr("nfllm.report.checkpoint_sections._WINDOWS", 10_000)
    assert main([str(run), "--out", str(tmp_path), "--importance", "--steps"]) == 0
    page = (tmp_path / "index.html").read_text()
    check(page)
    kept = {step: nfllm.load_run(run, step=step) for step in nfllm.steps(run)}
    assert list(kept) == [3, 5]

    heads = rows_of(tmp_path, "head_importance_0")
    found = nfllm.head_importance(kept[5], kept[5].validation_batches(8))
    for column, bound in zip(
        ("rise of the loss (nats)", "95% from", "95% to"), found.rise_LH, strict=True
    ):
        assert [float(r[column]) for r in heads] == pytest.approx(np.ravel(bound).tolist(), 1e-4)
    entropies = [float(row["entropy (nats)"]) for row in heads]
    assert entropies == pytest.approx(entropy_of(kept[5]).ravel().tolist(), rel=1e-4)

    steps = rows_of(tmp_path, "entropy_steps_0")
    for step, of_step in kept.items():
        measured = [float(r["entropy (nats)"]) for r in steps if r["run"] == f"step {step}"]
        assert measured == pytest.approx(entropy_of(of_step).ravel().tolist(), rel=1e-4)
    assert len(cells(page)) == len(steps) == 8
    assert "2 of 2 checkpoints" in page
    for name in ("head_importance_0", "entropy_by_position_0", "entropy_steps_0"):
        assert (tmp_path / "figures" / f"{name}.png").exists()


@pytest.mark.slow
def test_a_run_of_one_window_has_no_intervals_and_others_do(run, tmp_path, monkeypatch, capsys):
    batches = nfllm.load_run(run).validation_batches(8, max_windows=1)
    every = checkpoint_sections._batches
    given = iter([lambda _: batches, every])
    monkeypatch.setattr(checkpoint_sections, "_batches", lambda loaded: next(given)(loaded))
    out, other = tmp_path / "report", shutil.copytree(run, tmp_path / "other")
    assert main([str(run), str(other), "--importance", "--out", str(out)]) == 0, capsys.readouterr()
    page = (out / "index.html").read_text()
    assert "its validation split has fewer than two with a target" in page
    assert not (out / "tables" / "head_importance_0.csv").exists()
    assert rows_of(out, "head_importance_1")
    assert rows_of(out, "entropy_by_position_1")


@pytest.mark.slow
def test_what_is_not_there_is_one_line(run, tmp_path, capsys):
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((run / "config.json").read_bytes())
    for flag, message in (
        ("--steps", "has no checkpoint; make its report without --steps"),
        ("--importance", "checkpoint"),
    ):
        assert main([str(bare), flag]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1


@pytest.mark.slow
def test_a_damaged_checkpoint_is_left_out_and_named(run, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    for step, code in ((3, 0), (5, 2)):
        files = [f for f in (copy / "checkpoints" / f"step_{step}").rglob("*") if f.is_file()]
        largest = max(files, key=lambda file: file.stat().st_size)
        largest.write_bytes(largest.read_bytes()[:-100])
        assert main([str(copy), "--out", str(tmp_path / "page"), "--steps"]) == code
        if code == 0:
            page = (tmp_path / "page" / "index.html").read_text()
            assert "1 of 2 checkpoints. Damaged, and left out: 3." in page
    assert "has no checkpoint that can be read" in capsys.readouterr().err


def random_rise(layers: int, heads: int, scale: float) -> Interval:
    rise = scale * np.random.default_rng(0).uniform(-0.1, 1.0, (layers, heads))
    return Interval(rise, rise - 0.2 * scale, rise + 0.3 * scale)


@pytest.mark.parametrize(("layers", "heads"), [(1, 1), (6, 4), (12, 12), (48, 2)])
def test_head_importance_is_readable(layers, heads):
    entropy_LH = np.random.default_rng(1).uniform(0, 3.8, (layers, heads))
    rise_LH = random_rise(layers, heads, 0.02)
    figure = importance_figure(rise_LH, entropy_LH, ceiling=3.88, title="SM+R, step 1,200")
    assert_readable(figure)
    maps = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    np.testing.assert_array_equal(maps[0], entropy_LH)
    np.testing.assert_array_equal(maps[1], rise_LH.estimate)
    for panel in importance_panels(rise_LH, entropy_LH, ceiling=3.88, title="SM+R"):
        assert_readable(panel)


def test_heads_that_only_hurt_keep_their_digits_and_equal_entropies_their_axis():
    rise = np.array([[-0.0007, -0.0003]])
    entropy = [[2.5486861, 2.5486865]]
    figure = importance_figure(Interval(rise, rise - 1e-4, rise + 1e-4), entropy, ceiling=None)
    _, middle, right = figure.axes[:3]
    assert [text.get_text() for text in middle.texts] == ["-0.0007", "-0.0003"]
    assert right.get_xlim() == pytest.approx((0.95 * 2.5486863, 1.05 * 2.5486863), abs=1e-5)


def test_the_head_that_matters_most_is_named_and_small_rises_keep_their_digits():
    rise = np.array([[0.0, -0.0001], [0.0182, 0.0004]])
    figure = importance_figure(Interval(rise, rise - 0.01, rise + 0.02), [[3.0, 2.0], [1.0, 0.5]])
    _, middle, right = figure.axes[:3]
    assert [text.get_text() for text in middle.texts] == ["0.000", "0.000", "0.018", "0.000"]
    assert [text.get_text() for text in right.texts] == ["1.0"]
    bars = right.containers[1].lines[2][0].get_segments()[0]
    np.testing.assert_allclose(bars, [[1.0, 0.0082], [1.0, 0.0382]])


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"one shape \[L, H\], got \[2, 3\] and \[3, 2\]"):
        importance_figure(random_rise(2, 3, 1.0), np.zeros((3, 2)))
