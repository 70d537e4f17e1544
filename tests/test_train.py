"""The command `python train.py`, as a user runs it: real processes, real signals."""

import json
import shutil
import signal
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from kills import assert_same_run, start_and_kill
from tiny import make_corpus
from trainer import ROOT, TIMEOUT_SECONDS, Trainer, wait_for_step

import nfllm
from nfllm.rundir import RunError, read_record
from nfllm.rundir.metrics import read_metrics
from nfllm.training.loss import count_targets, next_token_loss

pytestmark = pytest.mark.slow

STEPS = 300


@pytest.fixture(scope="module")
def trainer(tmp_path_factory, compilation_cache):
    folder = tmp_path_factory.mktemp("train")
    make_corpus(folder / "corpus")
    return Trainer(folder, compilation_cache, optimized=True)


LONG = {
    "training__steps": STEPS,
    "checkpoint__every": 100,
    "telemetry__every": 100,
    "telemetry__entropy_every_step": True,
}


@pytest.fixture(scope="module")
def uninterrupted(trainer):
    run = trainer.folder / "uninterrupted"
    code, out, err = trainer.run(run, "--report", **LONG)
    assert code == 0, err
    return run, out


def test_a_run_ends_with_its_loss_speed_entropy_and_report(uninterrupted):
    run, out = uninterrupted
    metrics = read_metrics(run)
    (last,) = metrics.rows["eval"]
    assert last["step"] == STEPS
    assert last["eval_tokens"] == 20 * 31
    assert last["eval_perplexity"] == pytest.approx(np.exp(last["eval_loss_nats"]))
    assert f"loss {last['eval_loss_nats']:.4f} nats per token" in out
    assert f"perplexity {last['eval_perplexity']:.2f}" in out
    assert "tokens/s" in out
    assert "entropy in nats" in out
    assert f"report      {run / 'report' / 'index.html'}" in out
    assert (run / "report" / "index.html").read_text().startswith("<!DOCTYPE html>")
    steps, entropy_NLH = metrics.series("telemetry", "entropy_nats")
    assert list(steps) == [0, 100, 200, 300]
    assert entropy_NLH.shape == (4, 2, 2)
    # At the start attention is close to uniform: log(T!)/T for T = 32.
    np.testing.assert_allclose(entropy_NLH[0], 2.5557, atol=0.05)
    steps, of_steps_NLH = metrics.series("train", "entropy_nats")
    assert list(steps) == list(range(1, STEPS + 1))
    np.testing.assert_allclose(of_steps_NLH[0], 2.5557, atol=0.05)
    # Of other sequences, through training: close to what the probe sees, and not the same.
    assert 0 < np.abs(of_steps_NLH[-1] - entropy_NLH[-1]).max() < 0.3
    record = read_record(run)
    assert record.vocab_size == 257
    assert "token_embedding" in record.decayed_parameters
    assert set(record.undecayed_parameters) == {"final_norm.scale", "final_norm.bias"}


def test_sigterm_saves_and_the_same_command_goes_on(trainer, uninterrupted):
    run = trainer.folder / "sigterm"
    process = trainer.start(run, **LONG)
    wait_for_step(run, 30, process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == 0, err
    assert "SIGTERM: saved at step" in out
    assert "continue with the same command" in out
    code, out, err = trainer.run(run, **LONG)
    assert code == 0, err
    assert "resumed at step" in out
    assert "report" not in out
    assert not (run / "report").exists()
    assert_same_run(run, uninterrupted[0])


def test_kills_lose_nothing_that_was_saved(trainer, uninterrupted):
    run = trainer.folder / "sigkill"
    often = LONG | {"checkpoint__every": 10}
    # Where the machine is busy, a save can be whole before the kill comes; then the next is cut.
    assert any(
        start_and_kill(trainer, run, "saving", step, 0.0, **often).cut_a_save
        for step in (40, 60, 80, 100)
    )
    last = start_and_kill(trainer, run, "training", 140, 0.05, **often)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 141, "kind": "tra')
    code, out, err = trainer.run(run, **often)
    assert code == 0, err
    resumed = int(out.partition("resumed at step ")[2].split()[0])
    assert 0 <= last.step - resumed < 20
    assert_same_run(run, uninterrupted[0])


def test_ctrl_c_saves_and_says_so_in_its_exit_code(trainer):
    run = trainer.folder / "sigint"
    process = trainer.start(run, training__steps=100_000, evaluation__max_windows=8)
    wait_for_step(run, 5, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == 130, err
    assert "SIGINT: saved at step" in out


def test_another_config_on_the_same_workdir_is_refused_by_key(trainer, uninterrupted):
    run, _ = uninterrupted
    before = (run / "config.json").read_bytes()
    changes = {"model__activation": "gelu", "optimizer__learning_rate": 0.5}
    code, _, err = trainer.run(run, **LONG, **changes)
    assert code == 1
    assert "model.activation: 'relu' there, 'gelu' here" in err
    assert "optimizer.learning_rate: 0.001 there, 0.5 here" in err
    assert "another --workdir" in err
    assert (run / "config.json").read_bytes() == before


def test_a_loss_that_turns_nan_stops_the_run_and_keeps_the_checkpoint(trainer):
    run = trainer.folder / "nan"
    code, _, err = trainer.run(
        run,
        training__steps=200,
        checkpoint__every=5,
        optimizer__learning_rate=1e30,
        optimizer__warmup_steps=100,
        optimizer__clip_norm=0.0,
        model__final_normalization="none",
        optimizer__weight_decay=0.0,
    )
    assert code == 1
    assert "error: loss " in err
    assert "training.non_finite to skip or continue" in err
    (event,) = [e for e in read_metrics(run).rows["event"] if e["event"] == "non_finite"]
    assert f"first in {event['site']} of layer {event['layer']}: " in event["message"]
    assert event["nan"] + event["positive_inf"] + event["negative_inf"] > 0
    saved = sorted(int(p.name.removeprefix("step_")) for p in (run / "checkpoints").iterdir())
    assert all(step < event["step"] for step in saved)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config.model.activation=rleu"], "did you mean 'relu'?"),
        (["--config.model.actvation=relu"], "did you mean 'activation'?"),
        (["--config.modle.activation=relu"], "did you mean 'model'?"),
        (["--config.training.batch_size=sixteen"], "training.batch_size"),
        (["--wrkdir=runs"], "workdir"),
        (["stray"], "unexpected argument 'stray'"),
        (["--config.training.batch_size=3", "--config.parallel.cpu_devices=2"], "such as 4"),
        (["--config.data.sources=/nowhere"], "/nowhere"),
        (["--workdir=/proc/nowhere"], "cannot be written"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(trainer, options, message, tmp_path):
    command = [*trainer.command(tmp_path / "run"), *options]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, timeout=TIMEOUT_SECONDS
    )
    assert done.returncode != 0
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("metrics.jsonl"))


def test_a_corpus_without_python_files_is_named(trainer, tmp_path):
    (tmp_path / "empty").mkdir()
    code, _, err = trainer.run(tmp_path / "run", data__sources=str(tmp_path / "empty"))
    assert code == 1
    assert str(tmp_path / "empty") in err
    assert "Traceback" not in err


def test_a_loaded_run_gives_the_split_that_it_was_evaluated_on(uninterrupted, tmp_path):
    run, _ = uninterrupted
    loaded = nfllm.load_run(run)
    batches = loaded.validation_batches(8, max_windows=20)
    nats = targets = 0
    for tokens_BT, labels_BT in batches:
        logits_BTV = loaded.model.apply({"params": loaded.params}, tokens_BT)
        nats += float(next_token_loss(logits_BTV, jnp.asarray(labels_BT)))
        targets += int(count_targets(labels_BT))
    (last,) = loaded.metrics.rows["eval"]
    assert targets == last["eval_tokens"]
    assert nats / targets == pytest.approx(last["eval_loss_nats"], rel=1e-5)

    shutil.copytree(run, tmp_path / "other")
    record = json.loads((run / "config.json").read_text())
    record["data_fingerprint"] = "of another corpus"
    (tmp_path / "other" / "config.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match="data with fingerprint of another c, but the data now"):
        nfllm.load_run(tmp_path / "other").validation_batches()


def test_ctrl_c_before_training_has_begun_ends_without_a_traceback():
    code = (
        "from nfllm import train\n"
        "def interrupted(): raise KeyboardInterrupt\n"
        "train._train = interrupted\n"
        "train.main(['train.py'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "")


def test_metrics_lines_are_plain_json(uninterrupted):
    run, _ = uninterrupted
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines[:2]] == ["event", "telemetry"]
    assert {"step", "kind", "loss_nats", "grad_norm", "learning_rate"} <= set(json.loads(lines[2]))
