"""Signals that come when a step also asks for an evaluation."""

import os
import signal

import pytest
from tiny import make_corpus, tiny_config

from nfllm.rundir.metrics import read_metrics
from nfllm.trainer.loop import fit
from nfllm.trainer.program import Program
from nfllm.trainer.step_lines import StepLines


@pytest.mark.parametrize(
    ("every", "stops_at", "saved_before_evaluation"),
    [
        # The signal comes when step 3, whose evaluation follows, is read.
        pytest.param(1, 3, False, marks=pytest.mark.slow),
        (2, 4, True),  # it comes when step 3 is read, one step late
    ],
)
def test_nobody_waits_for_an_evaluation(
    tmp_path, monkeypatch, every, stops_at, saved_before_evaluation
):
    evaluated = []
    evaluate, write = Program.evaluate, StepLines.write

    def evaluate_and_note(self, state):
        step = int(state.step)
        evaluated.append((step, (run / "checkpoints" / f"step_{step}").is_dir()))
        return evaluate(self, state)

    def write_and_interrupt(self, values, step, waited):
        write(self, values, step, waited)
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Program, "evaluate", evaluate_and_note)
    monkeypatch.setattr(StepLines, "write", write_and_interrupt)
    run = tmp_path / "run"
    corpus = make_corpus(tmp_path / "corpus")
    config = tiny_config(corpus, tmp_path / "data", evaluation__every=every)
    result = fit(config, run)
    assert (result.interrupted, result.step) == (signal.SIGTERM, stops_at)
    assert evaluated[-1] == (stops_at, saved_before_evaluation)
    assert (run / "checkpoints" / f"step_{stops_at}").is_dir()


@pytest.mark.slow
def test_a_signal_during_the_last_evaluation_ends_the_run_after_it(tmp_path, monkeypatch):
    evaluate = Program.evaluate

    def evaluate_interrupted(self, state):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, state)

    monkeypatch.setattr(Program, "evaluate", evaluate_interrupted)
    config = tiny_config(make_corpus(tmp_path / "corpus"), tmp_path / "data", training__steps=2)
    result = fit(config, tmp_path / "run")
    assert (result.interrupted, result.step) == (signal.SIGTERM, 2)
    assert result.evaluation is not None
    assert read_metrics(tmp_path / "run").rows["event"][-1]["event"] == "finished"
