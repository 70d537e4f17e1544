"""The rehearsal of benchmarks/accelerator.py: every part, killed half-way and gone on with."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from trainer import TIMEOUT_SECONDS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PARTS = ("facts", "numbers", "attention", "step", "peers", "job", "paper")


def command(out, *options):
    return [
        sys.executable,
        str(ROOT / "benchmarks" / "accelerator.py"),
        "--out",
        str(out),
        *options,
    ]


def run(out, *options):
    return subprocess.run(command(out, *options), capture_output=True, text=True, timeout=1200)


def test_a_rehearsal_that_is_killed_goes_on_to_the_whole_table(tmp_path):
    out = tmp_path / "results"
    first = subprocess.Popen(command(out, "--rehearse"), stdout=subprocess.DEVNULL)
    numbers = out / "numbers.json"
    deadline = time.monotonic() + 600
    while not numbers.exists():  # its first rows
        assert time.monotonic() < deadline
        assert first.poll() is None
        time.sleep(0.2)
    first.send_signal(signal.SIGKILL)
    first.wait()
    facts = json.loads((out / "facts.json").read_text())
    assert facts["complete"]
    assert not json.loads(numbers.read_text())["complete"]

    again = run(out, "--rehearse")
    assert again.returncode == 0, again.stdout
    assert "facts: complete before" in again.stdout
    assert json.loads((out / "facts.json").read_text()) == facts
    found = {part: json.loads((out / f"{part}.json").read_text()) for part in PARTS}
    assert all(part["complete"] and part["rehearsal"] for part in found.values())
    assert all(row.get("ok", True) for part in found.values() for row in part["rows"].values())
    steps = [row for row in found["step"]["rows"].values() if "tflops" in row]
    assert all(row["finite"] and row["compilations"] == 1 for row in steps)
    assert "sm+r" in (out / "paper.html").read_text()
    table = run(out, "--table").stdout
    assert all(f"### {part}" in table for part in PARTS)
    assert "these numbers mean nothing" in table


def test_a_part_that_takes_too_long_is_cut_and_the_next_runs(tmp_path):
    done = run(tmp_path, "--rehearse", "--parts", "numbers,facts", "--budget", "24")
    lines = done.stdout.splitlines()
    assert done.returncode == 1
    assert any(
        line.startswith(("numbers: cut at its limit", "facts: not started")) for line in lines
    )


def test_the_part_ends_with_the_command(tmp_path):
    started = subprocess.Popen(
        command(tmp_path, "--rehearse", "--parts", "numbers"), stdout=subprocess.DEVNULL
    )
    children = Path(f"/proc/{started.pid}/task/{started.pid}/children")
    if not children.exists():
        started.kill()
        pytest.skip("this system does not list the children of a process")
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not (tmp_path / "log.txt").exists() or not (found := children.read_text().split()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    started.terminate()
    deadline = time.monotonic() + TIMEOUT_SECONDS
    assert started.wait() == 128 + signal.SIGTERM
    while any(Path("/proc", part).exists() for part in found):  # the system takes its time
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("options", "message", "code"),
    [
        ((), "error: JAX finds no accelerator here; --rehearse tries the code on a CPU", 2),
        (("--parts", "stepp"), "unknown part 'stepp'; choose from facts, numbers", 2),
        (("--table",), "holds no results", 0),
    ],
)
def test_bad_input_is_a_line(tmp_path, options, message, code):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        command(tmp_path / "out", *options), capture_output=True, text=True, env=environment
    )
    assert (done.returncode, message in done.stdout + done.stderr) == (code, True)


def test_results_of_another_machine_are_not_gone_on_with(tmp_path):
    there = {"part": "facts", "kind": "NVIDIA H100", "rehearsal": False, "complete": True}
    (tmp_path / "facts.json").write_text(json.dumps({**there, "seconds": 1.0, "rows": {}}))
    done = run(tmp_path, "--rehearse")
    assert done.returncode == 2
    assert "was measured with kind='NVIDIA H100', but this is 'cpu'" in done.stdout


def test_too_little_memory_halves_the_batch_and_says_so(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from parts.rows import halving

    def measure(sequences):
        if sequences > 5:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 40GiB")
        return {"ms": 1.0}

    row = halving(16, measure)
    assert (row["sequences"], row["note"]) == (4, "4 sequences, not 16: too little memory")
    with pytest.raises(ValueError, match="another fault"):
        halving(16, lambda _: (_ for _ in ()).throw(ValueError("another fault")))
