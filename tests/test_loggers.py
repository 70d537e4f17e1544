"""Loggers of a run: the interface, and TensorBoard and Weights & Biases read back from files.

The packages of the extras are needed where their files are; `.ci/run` has them.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath
from tiny import make_corpus, tiny_config

from nfllm.config import Config, ConfigError
from nfllm.config.limits import LOGGERS
from nfllm.rundir.metrics import MetricsWriter, read_metrics
from nfllm.trainer import loggers
from nfllm.trainer.journal import Journal
from nfllm.trainer.loggers import check_loggers, open_loggers, scalars


def config_with(names: str, **changes: Any) -> Config:
    values = Config().to_dict()
    values["telemetry"]["loggers"] = names
    return Config.from_dict(values)


def train_lines(run: Path, steps: range, done: int, names: str) -> None:
    """Writes lines as a run does that goes on from step `done`, with an evaluation at every 4th."""
    others = open_loggers(config_with(names), epath.Path(run), done)
    with Journal(epath.Path(run), 100, done, others) as journal:
        journal.event("resumed" if done else "started", done, "a line for people")
        for step in steps:
            journal.write("train", step, loss_nats=10.0 - step, note="text", missing=None)
            if step % 4 == 0:
                journal.write("telemetry", step, entropy_nats=np.arange(3) + [[step]] * 2)
                journal.write("eval", step, eval_loss_nats=float(step))
        journal.flush()
    # Two that are made in one second would have one name.
    for file in run.glob("tensorboard/events.out.tfevents.*.*"):
        file.rename(file.with_name(f"events.out.tfevents.{done}"))


def test_numbers_have_names_that_say_what_was_averaged() -> None:
    values = {
        "entropy_nats": np.array([[1.0, 2.0], [3.0, 6.0]]),
        "residual_rms": [0.5, 0.25],
        "nonfinite": {"residual": [0, 3]},
        "loss_nats": np.float32(2.0),
        "slope": float("nan"),
        "note": "text",
        "none": None,
    }
    found = scalars("telemetry", values)
    assert np.isnan(found.pop("telemetry/slope"))
    assert found == {
        "telemetry/entropy_nats/layer_00_mean": 1.5,
        "telemetry/entropy_nats/layer_01_mean": 4.5,
        "telemetry/residual_rms/layer_00": 0.5,
        "telemetry/residual_rms/layer_01": 0.25,
        "telemetry/nonfinite/residual/layer_00": 0.0,
        "telemetry/nonfinite/residual/layer_01": 3.0,
        "telemetry/loss_nats": 2.0,
    }


class Kept:
    """A logger of one's own."""

    def __init__(self) -> None:
        self.lines: list[Any] = []

    def on_metrics(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        self.lines.append((step, kind, dict(values)))

    def flush(self) -> None:
        self.lines.append("flush")

    def close(self) -> None:
        self.lines.append("close")


def test_every_logger_is_told_what_metrics_jsonl_holds(tmp_path: Path) -> None:
    kept = Kept()
    with Journal(epath.Path(tmp_path), 8, 0, [kept]) as journal:
        journal.write("train", 1, loss_nats=2.0)
        journal.event("started", 0, "hello")
        journal.flush()
    assert kept.lines == [
        (1, "train", {"loss_nats": 2.0}),
        (0, "event", {"event": "started", "message": "hello"}),
        "flush",
        "close",
    ]


@pytest.mark.parametrize("name", LOGGERS)
def test_a_missing_package_names_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    config = config_with(name)
    message = rf"telemetry.loggers={name} needs the package \w+: pip install 'nfllm\[{name}\]'$"
    with pytest.raises(ConfigError, match=message):
        check_loggers(config, epath.Path("runs/x"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: "found")
    check_loggers(config, epath.Path("runs/x"))
    with pytest.raises(ConfigError, match="writes local files, but --workdir is gs://b"):
        check_loggers(config, epath.Path("gs://bucket/run"))


def test_fit_looks_for_packages_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nfllm.trainer import loop

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(loop, "Program", pytest.fail)
    config = tiny_config(make_corpus(tmp_path / "c"), tmp_path / "d", telemetry__loggers="wandb")
    with pytest.raises(ConfigError, match="needs the package wandb"):
        loop.fit(config, tmp_path / "run")


def test_an_unknown_logger_is_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown logger 'tensorbord' in .*; did you mean"):
        config_with("wandb, tensorbord")
    assert config_with(" wandb,tensorboard,wandb").telemetry.loggers


def test_each_logger_of_the_config_exists() -> None:
    assert set(LOGGERS) == set(loggers._LOGGERS) == set(loggers._PACKAGES)


def test_a_logger_that_fails_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Failing(loggers._Scalars):
        name = "wandb"
        calls = 0

        def _log(self, step: int, numbers: Mapping[str, float]) -> None:
            self.calls += 1
            raise OSError("no network")

        def _close(self) -> None:
            self.calls += 1

    failing = Failing()
    with Journal(epath.Path(tmp_path), 8, 0, [failing]) as journal:
        for step in (1, 2):
            journal.write("train", step, loss_nats=2.0)
    assert failing.calls == 1
    assert "telemetry.loggers=wandb failed (no network)" in caplog.text
    assert len(read_metrics(tmp_path).rows["train"]) == 2


def tensorboard_events(run: Path) -> list[tuple[str, int, float]]:
    """All scalars that are in the event files, whatever TensorBoard would make of them."""
    pytest.importorskip("tensorboardX")
    from tensorboardX.event_file_writer import EventFileWriter  # noqa: F401 (the package is whole)
    from tensorboardX.proto import event_pb2

    found = []
    for file in sorted((run / "tensorboard").iterdir()):
        whole = file.read_bytes()
        while whole:
            length = int.from_bytes(whole[:8], "little")  # a TFRecord: length, sum, data, sum
            event = event_pb2.Event.FromString(whole[12 : 12 + length])
            whole = whole[12 + length + 4 :]
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
    return found


def expected_scalars(run: Path) -> list[tuple[str, int, float]]:
    rows = read_metrics(run).rows
    return sorted(
        (name, row["step"], number)
        for kind in ("train", "eval", "telemetry")
        for row in rows[kind]
        for name, number in scalars(
            kind, {field: x for field, x in row.items() if field not in ("step", "kind")}
        ).items()
    )


def test_tensorboard_holds_each_line_once_after_a_kill(tmp_path: Path) -> None:
    """Killed at 7, gone on from the checkpoint of 4, and once more when it had finished."""
    pytest.importorskip("tensorboardX")
    train_lines(tmp_path, range(1, 8), 0, "tensorboard")
    assert len(tensorboard_events(tmp_path)) == 7 + 2 + 1
    train_lines(tmp_path, range(5, 9), 4, "tensorboard")
    with MetricsWriter(tmp_path) as metrics:
        metrics.write("train", 9, loss_nats=5.0)  # after the checkpoint at which the next begins
    train_lines(tmp_path, range(8, 9), 8, "tensorboard")
    found = sorted(tensorboard_events(tmp_path))
    assert found == expected_scalars(tmp_path)
    assert ("telemetry/entropy_nats/layer_01_mean", 8, 9.0) in found
    assert len(found) == 8 + 2 * 2 + 2


def test_tensorboard_reads_its_files(tmp_path: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", exc_type=ImportError
    )
    train_lines(tmp_path, range(1, 8), 0, "")  # switched on when the run goes on
    train_lines(tmp_path, range(5, 9), 4, "tensorboard")
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("train/loss_nats")]
    assert found == [(step, 10.0 - step) for step in range(1, 9)]
    assert [event.step for event in events.Scalars("eval/eval_loss_nats")] == [4, 8]


def wandb_records(file: Path) -> list[bytes]:
    """The records of a file of Weights & Biases: those of a LevelDB log, after seven bytes."""
    whole, records, parts = file.read_bytes(), [], b""
    at, block = 7, 32_768
    while at < len(whole):
        if block - at % block < 7:  # no room for a head: the rest of the block is empty
            at += block - at % block
            continue
        length, kind = int.from_bytes(whole[at + 4 : at + 6], "little"), whole[at + 6]
        parts += whole[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            records.append(parts)
            parts = b""
    return records


def wandb_rows(run: Path) -> dict[str, list[tuple[str, int, float]]]:
    """What the offline files hold, by the id of the run."""
    from wandb.proto import wandb_internal_pb2

    found: dict[str, list[tuple[str, int, float]]] = {}
    rows: list[tuple[str, int, float]] = []
    for file in sorted((run / "wandb").glob("offline-run-*/*.wandb")):
        for data in wandb_records(file):
            record = wandb_internal_pb2.Record.FromString(data)
            if record.WhichOneof("record_type") == "run":
                rows = found.setdefault(record.run.run_id, [])
            if record.WhichOneof("record_type") == "history":
                step = record.history.step.num
                named = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in record.history.item
                }
                rows += [(name, step, value) for name, value in named.items() if name[0] != "_"]
    return found


@pytest.mark.slow
def test_weights_and_biases_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gone on from the end of the first part: the second has what comes after, nothing twice."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train_lines(tmp_path, range(1, 5), 0, "wandb")
    train_lines(tmp_path, range(4, 9), 4, "wandb")
    ((_, rows),) = wandb_rows(tmp_path).items()  # one id
    assert sorted(rows) == expected_scalars(tmp_path)
    assert len(rows) == 8 + 2 * 2 + 2


@pytest.mark.slow
def test_weights_and_biases_switched_on_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the run measured before is filled in."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train_lines(tmp_path, range(1, 7), 0, "")
    train_lines(tmp_path, range(5, 9), 4, "wandb")
    ((_, rows),) = wandb_rows(tmp_path).items()
    assert sorted(rows) == expected_scalars(tmp_path)
    assert len(rows) == 8 + 2 * 2 + 2
