"""What a run says when it goes on otherwise than before."""

import dataclasses
import re

import pytest
from tiny import make_corpus, tiny_config

from nfllm.config import Config, ConfigError
from nfllm.model import attention_implementation
from nfllm.rundir import RunError, read_record
from nfllm.rundir.metrics import read_metrics
from nfllm.trainer import loop
from nfllm.trainer.loop import fit
from nfllm.trainer.program import Program
from nfllm.trainer.record import describe_changes


def config_of(steps: int, log_every: int = 25) -> Config:
    """Four steps of warmup to 0.1, then to 0 on a line."""
    config = Config()
    return dataclasses.replace(
        config,
        optimizer=dataclasses.replace(
            config.optimizer,
            schedule="polynomial",
            learning_rate=0.1,
            final_learning_rate=0.0,
            warmup_steps=4,
        ),
        training=dataclasses.replace(config.training, steps=steps, log_every=log_every),
    )


@pytest.mark.parametrize(
    ("new", "step", "expected"),
    [
        # The last of 10 steps has 1/6 of the peak; of 20 steps 10 of 16 are left after it.
        (
            config_of(20),
            10,
            " with training.steps=20 (was 10); the learning rate goes from 0.017 at step 10 to "
            "0.062 at step 11",
        ),
        (
            config_of(8, log_every=5),
            6,
            " with training.steps=8 (was 10), training.log_every=5 (was 25); the learning rate "
            "goes from 0.083 at step 6 to 0.05 at step 7",
        ),
        (config_of(10, log_every=5), 10, " with training.log_every=5 (was 25)"),
        (config_of(20), 0, " with training.steps=20 (was 10)"),
        (config_of(10), 10, ""),
    ],
)
def test_the_learning_rate_before_and_after_is_named(new: Config, step: int, expected: str) -> None:
    assert describe_changes(config_of(10), new, step) == expected


def test_steps_without_an_update_are_not_counted() -> None:
    whole = describe_changes(config_of(10), config_of(20), 10)
    assert describe_changes(config_of(10), config_of(20), 12, skipped=2) == whole.replace(
        "step 11", "step 13"
    ).replace("step 10", "step 12")


@pytest.mark.slow
def test_it_is_that_of_the_metrics(tmp_path) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    for steps in (2, 3):
        fit(tiny_config(corpus, tmp_path / "data", training__steps=steps), tmp_path / "run")
    metrics = read_metrics(tmp_path / "run")
    (message,) = [line["message"] for line in metrics.rows["event"] if line["event"] == "resumed"]
    named = re.search(r"goes from (\S+) at step 2 to (\S+) at step 3$", message)
    _, rates = metrics.series("train", "learning_rate")
    assert [float(rate) for rate in named.groups()] == pytest.approx(rates[1:], rel=0.01)
    assert rates[1] != rates[2]


@pytest.mark.slow
def test_fewer_steps_than_there_are_is_refused_and_changes_nothing(tmp_path) -> None:
    corpus, run = make_corpus(tmp_path / "corpus"), tmp_path / "run"
    fit(tiny_config(corpus, tmp_path / "data"), run)
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match=r"run is at step 8, but training\.steps=4; raise it, or"):
        fit(tiny_config(corpus, tmp_path / "data", training__steps=4), run)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == files


@pytest.mark.slow
def test_a_start_that_failed_does_not_hide_what_was_changed(tmp_path, monkeypatch) -> None:
    corpus, run = make_corpus(tmp_path / "corpus"), tmp_path / "run"
    fit(tiny_config(corpus, tmp_path / "data", training__steps=2), run)
    longer = tiny_config(corpus, tmp_path / "data", training__steps=3)

    def not_logged_in(*_):
        raise ConfigError("not logged in")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "open_loggers", not_logged_in)
        with pytest.raises(ConfigError, match="not logged in"):
            fit(longer, run)
    fit(longer, run)
    messages = [row["message"] for row in read_metrics(run).rows["event"]]
    assert any("training.steps=3 (was 2)" in message for message in messages)
    assert read_record(run).config == longer


@pytest.mark.slow
def test_a_run_that_another_process_made_meanwhile_is_not_continued(tmp_path, monkeypatch) -> None:
    """While this one prepared its data, which may take hours."""
    corpus, run = make_corpus(tmp_path / "corpus"), tmp_path / "run"

    def prepare(config):
        if config.training.seed == 1:
            fit(tiny_config(corpus, tmp_path / "data", training__steps=2), run)
        return Program(config)

    monkeypatch.setattr(loop, "Program", prepare)
    other = tiny_config(corpus, tmp_path / "data", training__steps=4, training__seed=1)
    with pytest.raises(RunError, match="holds a run of another config"):
        fit(other, run)
    assert read_record(run).config.training.seed == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "cudnn"),
        ({"objective__entropy_weight": 1e-5}, "explicit"),
        ({"optimizer__qk_clip": 10.0}, "explicit"),
        ({"telemetry__entropy_every_step": True}, "explicit"),
    ],
)
def test_the_first_line_names_the_attention_of_the_step(
    changes, expected, tmp_path, monkeypatch
) -> None:
    """As on a GPU: cuDNN, unless the step forms attention maps."""
    program = Program(tiny_config(make_corpus(tmp_path / "c"), tmp_path / "data", **changes))
    monkeypatch.setattr(attention_implementation, "choose_implementation", lambda *_: "cudnn")
    assert f"{expected} attention" in program.describe()
