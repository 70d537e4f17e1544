"""Two real processes of two devices each, against one process of four."""

import os
import shutil
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from tiny import make_corpus
from trainer import TIMEOUT_SECONDS, Trainer, wait_for_step

from nfllm.config import ConfigError
from nfllm.rundir.metrics import read_metrics
from nfllm.trainer import hosts

pytestmark = pytest.mark.slow

RUN = {
    "training__steps": 12,
    "checkpoint__every": 6,
    "telemetry__every": 6,
    # With four layers fsdp has a slope on each of the four devices.
    "model__activation": "learnable_leaky_relu",
    "model__num_layers": 4,
}


@pytest.fixture(scope="module")
def trainer(tmp_path_factory, compilation_cache):
    folder = tmp_path_factory.mktemp("hosts")
    make_corpus(folder / "corpus")
    return Trainer(folder, compilation_cache)


@pytest.fixture(autouse=True)
def no_process_is_left(trainer):
    """A process that waits for ever would slow down all tests after its own."""
    yield
    trainer.end_all()


@pytest.fixture(scope="module")
def one_process(trainer):
    run = trainer.folder / "one"
    code, _, err = trainer.run(run, parallel__cpu_devices=4, **RUN)
    assert code == 0, err
    return run


@pytest.fixture(scope="module")
def two_by_fsdp(trainer):
    run = trainer.folder / "two_by_fsdp"
    pair = trainer.run_pair(run, parallel__strategy="fsdp", **RUN)
    assert [code for code, _, _ in pair] == [0, 0], pair
    return run, pair


def _copy_at_step_6(one_process, run):
    """A run that was killed after its first checkpoint."""
    shutil.copytree(one_process, run)
    shutil.rmtree(run / "checkpoints" / "step_12")


def _assert_same_numbers(run, expected):
    for kind, field in [
        ("train", "loss_nats"),
        ("train", "grad_norm"),
        ("eval", "eval_loss_nats"),
        ("telemetry", "entropy_nats"),
        ("telemetry", "negative_slopes"),
    ]:
        found, wanted = (read_metrics(path).series(kind, field) for path in (run, expected))
        np.testing.assert_array_equal(found[0], wanted[0])
        np.testing.assert_allclose(found[1], wanted[1], rtol=3e-6, err_msg=field)


def test_two_processes_train_as_one(trainer, one_process):
    run = trainer.folder / "two_by_pmap"
    (first, second) = trainer.run_pair(run, **RUN)
    assert (first[0], second[0]) == (0, 0), (first, second)
    _assert_same_numbers(run, one_process)
    # Only the first process tells anything.
    assert "evaluation  loss" in first[1]
    assert "loss" not in second[1]
    assert len(read_metrics(run).rows["event"]) == 2


def test_two_processes_train_as_one_by_fsdp(one_process, two_by_fsdp):
    run, (first, second) = two_by_fsdp
    _assert_same_numbers(run, one_process)
    assert "evaluation  loss" in first[1]
    assert "loss" not in second[1]


def test_what_one_process_cannot_read_both_pass_over(trainer, two_by_fsdp):
    """The shards of the second process are damaged, which the first has no reason to read."""
    run = trainer.folder / "damaged"
    shutil.copytree(two_by_fsdp[0], run)
    folders = (run / "checkpoints" / "step_12" / "state").glob("ocdbt.process_1/d")
    files = [file for folder in folders for file in folder.iterdir()]
    largest = max(files, key=lambda file: file.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    (first, second) = trainer.run_pair(run, parallel__strategy="fsdp", **RUN)
    assert (first[0], second[0]) == (0, 0), (first, second)
    assert "checkpoint of step 12 is damaged (" in first[1]
    assert "continuing from step 6" in first[1]
    _assert_same_numbers(run, two_by_fsdp[0])


NONE = ("none", "starting")  # with the same limits as the other


@pytest.mark.parametrize(
    ("fault", "place", "who"),
    [
        ("raise", "preparing data", 0),
        ("raise", "training", 1),
        ("raise", "saving", 0),
        ("hang", "starting", 1),
        ("hang", "reading a checkpoint", 0),
        ("hang", "evaluating", 1),
    ],
)
def test_a_process_that_fails_or_hangs_ends_both_with_its_name(
    trainer, one_process, tmp_path, monkeypatch, fault, place, who
):
    run = tmp_path / "run"
    if place == "reading a checkpoint":
        _copy_at_step_6(one_process, run)
    if fault == "hang":
        monkeypatch.setenv("FAULTY_LIMIT_SECONDS", "10")
    faults = [NONE, NONE]
    faults[who] = (fault, place)
    pair = trainer.run_pair(run, faults=faults, **RUN)
    assert [code for code, _, _ in pair] == [1, 1], pair
    assert f"process {who}" in pair[1 - who][2]
    if fault == "raise":
        assert "error: the disk has gone" in pair[who][2]
        assert f"error: process {who} has ended: the disk has gone" in pair[1 - who][2]
    for _, _, err in pair:
        assert "Traceback" not in err
        assert "Check failure stack trace" not in err  # what JAX prints when it aborts


def test_nobody_aborts_while_the_first_writes_a_long_report(trainer, tmp_path, monkeypatch):
    """JAX gives the last to leave half a minute; here it has a second."""
    monkeypatch.setenv("FAULTY_SHUTDOWN_SECONDS", "1")
    faults = [("slow", "reporting"), NONE]
    pair = trainer.run_pair(tmp_path / "run", faults=faults, **RUN)
    assert [code for code, _, _ in pair] == [0, 0], pair
    assert "entropy in nats" in pair[0][1]


def test_a_checkpoint_of_one_process_goes_on_in_two(trainer, one_process):
    run = trainer.folder / "elastic_two"
    _copy_at_step_6(one_process, run)
    (first, second) = trainer.run_pair(run, parallel__strategy="fsdp", **RUN)
    assert (first[0], second[0]) == (0, 0), (first, second)
    assert "resumed at step 6" in first[1]
    _assert_same_numbers(run, one_process)


def test_a_checkpoint_of_four_devices_goes_on_on_one(trainer, one_process):
    run = trainer.folder / "elastic_one"
    _copy_at_step_6(one_process, run)
    code, out, err = trainer.run(run, parallel__cpu_devices=1, **RUN)
    assert code == 0, err
    assert "resumed at step 6 with parallel.cpu_devices=1 (was 4)" in out
    _assert_same_numbers(run, one_process)


def test_ctrl_c_in_one_process_saves_and_stops_both_at_one_step(trainer):
    """It becomes the SIGTERM that JAX tells the other process of."""
    run = trainer.folder / "interrupted"
    pair = trainer.start_pair(run, training__steps=100_000)
    wait_for_step(run, 3, pair[0])
    pair[1].send_signal(signal.SIGINT)
    texts = [process.communicate(timeout=TIMEOUT_SECONDS) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], texts
    saved = [out.rpartition("is at step ")[2].strip() for out, _ in texts]
    assert saved[0] == saved[1]
    assert (run / "checkpoints" / f"step_{saved[0]}").is_dir()


def test_a_process_that_dies_ends_the_other_in_bounded_time(trainer):
    run = trainer.folder / "killed"
    pair = trainer.start_pair(run, training__steps=100_000)
    wait_for_step(run, 3, pair[0])
    pair[1].kill()
    pair[0].communicate(timeout=TIMEOUT_SECONDS)
    assert pair[0].returncode != 0
    pair[1].communicate()


def test_processes_of_different_configs_refuse_and_name_the_key(trainer):
    run = trainer.folder / "different"
    for code, _, err in trainer.run_pair(run, of_second={"training__seed": 7}, **RUN):
        assert code != 0
        assert "the processes differ in training.seed: 0 in process 0, 7 in process 1" in err
    assert not (run / "metrics.jsonl").exists()


def test_an_unreachable_coordinator_is_an_error_in_bounded_time():
    code = (
        "from nfllm.trainer import hosts; hosts._START_SECONDS = 3\nhosts.join('localhost:9', 2, 1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=90)
    assert done.returncode != 0
    assert "localhost:9" in done.stderr


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("host:1", None, None), "give all three, or none"),
        ((None, 2, 0), "give all three, or none"),
        (("host:1", 2, 2), r"--process_id=2 is not one of --num_processes=2"),
        (("host", 2, 0), "write HOST:PORT"),
        (("host:1", 0, 0), r"--process_id=0 is not one of --num_processes=0"),
    ],
)
def test_incomplete_addresses_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        hosts.join(*values)


def _slurm():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    return {
        "JAX_PLATFORMS": "cpu",
        "JAX_COORDINATOR_PORT": port,
        "SLURM_JOB_ID": "7",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_STEP_NODELIST": "localhost",
    }


def test_the_tasks_of_slurm_find_each_other():
    code = (
        "from nfllm.trainer import hosts; hosts.join(None, None, None); import jax\n"
        "print(jax.process_index(), jax.process_count(), jax.device_count())"
    )
    slurm = _slurm()
    tasks = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | slurm | {"SLURM_PROCID": task, "SLURM_LOCALID": task},
        )
        for task in "01"
    ]
    ended = [task.communicate(timeout=150) for task in tasks]
    assert [out.strip() for out, _ in ended] == ["0 2 2", "1 2 2"], ended


def test_a_batch_script_of_slurm_is_no_task(monkeypatch):
    for name, value in _slurm().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_STEP_NODELIST")
    hosts.join(None, None, None)  # would look for the second task in vain
    assert not jax.distributed.is_initialized()


def test_the_environment_can_say_it_too(monkeypatch):
    monkeypatch.setenv("NFLLM_COORDINATOR", "host:1")
    monkeypatch.setenv("NFLLM_NUM_PROCESSES", "2")
    monkeypatch.setenv("NFLLM_PROCESS_ID", "5")
    with pytest.raises(ConfigError, match="--process_id=5 is not one"):
        hosts.join(None, None, None)
    monkeypatch.setenv("NFLLM_PROCESS_ID", "first")
    with pytest.raises(ConfigError, match="NFLLM_PROCESS_ID='first' must be a whole number"):
        hosts.join(None, None, None)
