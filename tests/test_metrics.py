"""metrics.jsonl: what was whole is read, what was incomplete is named."""

import json
import sys
import types

import jax.numpy as jnp
import numpy as np
import object_storage
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_runs import make_record

import nfllm.rundir.metrics
from nfllm.rundir import read_record, write_record
from nfllm.rundir.metrics import Metrics, MetricsWriter, read_metrics


def test_metrics_read_back_by_kind(tmp_path):
    with MetricsWriter(tmp_path) as metrics:
        metrics.write("event", 0, event="started", message="as <b>asked</b>")
        metrics.write("train", 10, loss_nats=np.float32(1.5), tokens=np.int64(640))
        metrics.write("eval", 10, eval_loss_nats=2.0)
        metrics.write(
            "telemetry",
            10,
            entropy_nats=np.asarray([[1.0, 2.0], [3.0, 4.5]], np.float32),
            nonfinite={"q": jnp.asarray([0, 3]), "logits": [0, 1]},
        )
    read = read_metrics(tmp_path)
    assert read.warnings == []
    assert read.rows["train"] == [{"step": 10, "kind": "train", "loss_nats": 1.5, "tokens": 640}]
    assert read.rows["telemetry"][0]["entropy_nats"] == [[1.0, 2.0], [3.0, 4.5]]
    assert read.rows["telemetry"][0]["nonfinite"] == {"q": [0, 3], "logits": [0, 1]}
    assert read.rows["event"][0]["message"] == "as <b>asked</b>"


def test_every_line_is_one_object_and_reaches_the_file_at_once(tmp_path):
    metrics = MetricsWriter(tmp_path)
    metrics.write("train", 1, loss_nats=3.0)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 1, "kind": "train", "loss_nats": 3.0}]
    metrics.close()
    metrics.close()
    with pytest.raises(ValueError, match="is closed"):
        metrics.write("train", 2, loss_nats=2.0)


def test_non_finite_values_survive(tmp_path):
    values = [float("nan"), float("inf"), float("-inf"), 1.25]
    with MetricsWriter(tmp_path) as metrics:
        for step, value in enumerate(values):
            metrics.write("train", step, loss_nats=value)
    assert '"loss_nats": NaN' in (tmp_path / "metrics.jsonl").read_text()
    steps, losses = read_metrics(tmp_path).series("train", "loss_nats")
    np.testing.assert_array_equal(steps, [0, 1, 2, 3])
    np.testing.assert_array_equal(losses, values)


def test_unknown_kind_and_unwritable_value(tmp_path):
    with MetricsWriter(tmp_path) as metrics:
        with pytest.raises(ValueError, match=r"'evil'; .*choose from eval, event, tele"):
            metrics.write("evil", 1)
        with pytest.raises(TypeError, match=r"cannot hold .* of type set"):
            metrics.write("train", 1, loss_nats={1.0})
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_series_leaves_out_lines_without_the_field(tmp_path):
    with MetricsWriter(tmp_path) as metrics:
        metrics.write("telemetry", 0, negative_slopes=[0.01, 0.02])
        metrics.write("telemetry", 5)
        metrics.write("telemetry", 10, negative_slopes=[0.03, 0.04])
    steps, slopes = read_metrics(tmp_path).series("telemetry", "negative_slopes")
    np.testing.assert_array_equal(steps, [0, 10])
    np.testing.assert_array_equal(slopes, [[0.01, 0.02], [0.03, 0.04]])
    assert read_metrics(tmp_path).series("train", "loss_nats")[1].shape == (0,)


@pytest.mark.parametrize(
    ("kind", "field", "misspelt", "nearest"),
    [
        ("trian", "loss_nats", "trian", "train"),
        ("train", "loss", "loss", "loss_nats"),
        ("train", "los_nats", "los_nats", "loss_nats"),
        ("telemetry", "entropy", "entropy", "entropy_nats"),
        ("eval", "perplexity", "perplexity", "eval_perplexity"),
    ],
)
def test_misspelt_names_are_told_the_nearest(tmp_path, kind, field, misspelt, nearest):
    with MetricsWriter(tmp_path) as metrics:
        metrics.write("train", 1, loss_nats=3.0, learning_rate=0.1)
        metrics.write("telemetry", 1, entropy_nats=[[1.0]])
        metrics.write("eval", 1, eval_loss_nats=3.0, eval_perplexity=20.0)
    with pytest.raises(ValueError, match=rf"{misspelt!r}; did you mean {nearest!r}\? choose from"):
        read_metrics(tmp_path).series(kind, field)


def train_line(step: int, loss: float) -> dict:
    return {"step": step, "kind": "train", "loss_nats": loss}


def test_later_line_of_a_step_wins_and_steps_are_sorted(tmp_path):
    lines = [train_line(20, 2.0), train_line(10, 3.0), train_line(20, 1.0)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    steps, losses = read_metrics(tmp_path).series("train", "loss_nats")
    np.testing.assert_array_equal(steps, [10, 20])
    np.testing.assert_array_equal(losses, [3.0, 1.0])


def test_resuming_discards_what_came_after_the_checkpoint(tmp_path):
    with MetricsWriter(tmp_path) as metrics:
        metrics.write("event", 0, event="started", message="")
        for step in (10, 20, 30, 40):
            metrics.write("train", step, loss_nats=float(step))
    with MetricsWriter(tmp_path) as metrics:
        metrics.write("event", 20, event="resumed", message="from step 20")
        metrics.write("train", 25, loss_nats=0.5)
    read = read_metrics(tmp_path)
    np.testing.assert_array_equal(read.series("train", "loss_nats")[0], [10, 20, 25])
    assert [row["event"] for row in read.rows["event"]] == ["started", "resumed"]


def test_starting_anew_discards_all_that_came_before(tmp_path):
    """As after a kill before the first checkpoint, when the same command starts from step 0."""
    with MetricsWriter(tmp_path) as metrics:
        metrics.write("event", 0, event="started", message="")
        for step in (10, 20, 30):
            metrics.write("train", step, loss_nats=float(step))
        metrics.write("event", 0, event="started", message="")
        metrics.write("train", 20, loss_nats=0.5)
    steps, losses = read_metrics(tmp_path).series("train", "loss_nats")
    np.testing.assert_array_equal((steps, losses), ([20], [0.5]))


def test_events_of_one_step_are_all_kept(tmp_path):
    with MetricsWriter(tmp_path) as metrics:
        metrics.write("event", 50, event="checkpoint", message="saved")
        metrics.write("event", 50, event="finished", message="")
    events = [row["event"] for row in read_metrics(tmp_path).rows["event"]]
    assert events == ["checkpoint", "finished"]


def test_torn_last_line_is_left_out_and_named(tmp_path):
    whole = json.dumps(train_line(1, 2.0)) + "\n"
    (tmp_path / "metrics.jsonl").write_text(whole * 16 + '{"step": 2, "kind": "tra')
    read = read_metrics(tmp_path)
    assert read.warnings == ["metrics.jsonl line 17 is incomplete; left out"]
    assert len(read.rows["train"]) == 1


def test_unreadable_lines_are_left_out_and_named(tmp_path):
    whole = json.dumps(train_line(1, 2.0)).encode()
    lines = [
        b"\x00\x00\xff",
        whole,
        b'{"step": "3", "kind": "train"}',
        b"[1, 2]",
        b"",
        b"[" * 100_000,
    ]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    read = read_metrics(tmp_path)
    assert read.warnings == [
        f"metrics.jsonl line {n} is not a JSON object with a step and a kind; left out"
        for n in (1, 3, 4, 5, 6)
    ]
    assert read.rows["train"] == [train_line(1, 2.0)]


def test_missing_metrics_are_empty_with_a_warning(tmp_path):
    empty = {"train": [], "eval": [], "telemetry": [], "event": []}
    assert read_metrics(tmp_path) == Metrics(rows=empty, warnings=["metrics.jsonl is missing"])


def test_opening_drops_a_torn_line_and_completes_a_whole_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = json.dumps(train_line(1, 2.0))
    path.write_text(f"{whole}\n" + '{"step": 2, "kind": "train", "loss_n')
    with MetricsWriter(tmp_path) as metrics:
        metrics.write("train", 2, loss_nats=1.0)
    assert [row["step"] for row in read_metrics(tmp_path).rows["train"]] == [1, 2]
    assert read_metrics(tmp_path).warnings == []

    path.write_text(whole)
    MetricsWriter(tmp_path).close()
    assert path.read_text() == whole + "\n"


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(min_value=0), losses=st.lists(st.floats(width=32), min_size=1, max_size=6))
def test_a_kill_at_any_byte_costs_at_most_one_line(tmp_path_factory, cut, losses):
    run = tmp_path_factory.mktemp("run")
    with MetricsWriter(run) as metrics:
        for step, loss in enumerate(losses):
            metrics.write("train", step, loss_nats=loss)
    path = run / "metrics.jsonl"
    whole = path.read_bytes()
    kept = whole[: cut % (len(whole) + 1)]
    path.write_bytes(kept)
    before = read_metrics(run)
    complete = kept.count(b"\n")
    assert len(before.rows["train"]) in (complete, complete + (not kept.endswith(b"\n")))
    with MetricsWriter(run) as metrics:
        metrics.write("train", len(losses), loss_nats=0.0)
    after = read_metrics(run)
    assert after.warnings == []
    assert json.dumps(after.rows["train"][:-1]) == json.dumps(before.rows["train"])


def test_remote_lines_are_kept_until_flushed_and_read_back(monkeypatch):
    object_storage.in_memory(monkeypatch)
    run = epath.Path("gs://bucket/run")
    record = make_record({})
    write_record(run, record)
    assert read_record(run) == record
    (run / "metrics.jsonl").write_text('{"step": 1, "kind": "train", "loss_nats": 2.0}\n{"st')
    now = [0.0]
    clock = types.SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(nfllm.rundir.metrics, "time", clock)
    metrics = MetricsWriter(run)
    metrics.write("train", 2, loss_nats=1.0)
    assert (run / "metrics.jsonl").read_text().endswith('\n{"st')
    metrics.flush()
    assert [row["step"] for row in read_metrics(run).rows["train"]] == [1, 2]

    metrics.write("train", 3, loss_nats=0.5)
    assert len(read_metrics(run).rows["train"]) == 2
    now[0] = 31.0
    metrics.write("train", 4, loss_nats=0.25)
    assert len(read_metrics(run).rows["train"]) == 4
    metrics.write("train", 5, loss_nats=0.125)
    metrics.close()
    assert read_metrics(run).series("train", "loss_nats")[1].tolist() == [2, 1, 0.5, 0.25, 0.125]


def test_a_table_of_pandas(tmp_path):
    pytest.importorskip("pandas")
    with MetricsWriter(tmp_path) as metrics:
        metrics.write("event", 0, event="started", message="hello")
        for step in (1, 2):
            metrics.write("train", step, loss_nats=3.0 - step)
        metrics.write("telemetry", 1, entropy_nats=[[1.0, 2.0]], nonfinite={"residual": [0, 4]})
    found = read_metrics(tmp_path)
    table = found.frame("train")
    assert list(table.columns) == ["step", "kind", "loss_nats"]
    assert table["loss_nats"].tolist() == [2.0, 1.0]
    table = found.frame()
    assert table["step"].tolist() == [1, 1, 2]
    telemetry = table[table["kind"] == "telemetry"].iloc[0]
    assert telemetry["entropy_nats.0.1"] == 2.0
    assert telemetry["nonfinite.residual.1"] == 4.0
    assert found.frame("event")["message"].tolist() == ["hello"]
    with pytest.raises(ValueError, match="unknown kind of metrics line 'trian'; did you mean"):
        found.frame("trian")


def test_a_table_without_pandas_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"metrics.frame\(\) needs pandas: pip install pandas"):
        read_metrics(tmp_path).frame()
