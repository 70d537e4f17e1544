"""Runs `train.py` on the tiny corpus as a user does: in processes of its own."""

import dataclasses
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from tiny import tiny_flags

from nfllm.rundir.metrics import read_metrics

ROOT = Path(__file__).parents[1]
TIMEOUT_SECONDS = 300


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Commands that share a corpus, its prepared data and compiled programs.

    They write no report, which takes as long as their training, unless `--report` is an option.
    Where `optimized`, programs are compiled as users' are, else as those of other tests.
    """

    folder: Path
    cache: Path
    optimized: bool = False
    started: list[subprocess.Popen] = dataclasses.field(default_factory=list)

    def command(self, run, *options, fault=None, **changes):
        flags = {"parallel__cpu_devices": 2, "training__compilation_cache": str(self.cache)}
        config = tiny_flags(self.folder / "corpus", self.folder / "data", **(flags | changes))
        changed = [f"--config.{key}={value}" for key, value in config.items()]
        script = [*fault_arguments(fault), str(ROOT / "train.py")]
        return [sys.executable, *script, "--noreport", "--workdir", str(run), *changed, *options]

    def start(self, run, *options, **changes):
        environment = os.environ | ({"XLA_FLAGS": ""} if self.optimized else {})
        process = subprocess.Popen(
            self.command(run, *options, **changes),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=self.folder,
        )
        self.started.append(process)
        return process

    def end_all(self):
        """Ends what a test that failed, or ran out of time, has left."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
                process.communicate()
        self.started.clear()

    def run(self, run, *options, **changes):
        """Exit code, standard output and standard error."""
        process = self.start(run, *options, **changes)
        try:
            out, err = process.communicate(timeout=TIMEOUT_SECONDS)
        finally:
            process.kill()  # of a run that took too long
        return process.returncode, out, err

    def start_pair(self, run, of_second=None, faults=(None, None), **changes):
        """Two processes of one run, which meet at a free port of this machine.

        `of_second` are changes that only the second gets; `faults` what goes wrong in each, as the
        arguments of `faulty.py`.
        """
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        meeting = [f"--coordinator={address}", "--num_processes=2"]
        return [
            self.start(run, *meeting, f"--process_id={number}", fault=fault, **(changes | own))
            for number, (fault, own) in enumerate(zip(faults, ({}, of_second or {}), strict=True))
        ]

    def run_pair(self, run, **changes):
        """Exit code, standard output and standard error of each, in bounded time."""
        pair = self.start_pair(run, **changes)
        deadline = time.monotonic() + TIMEOUT_SECONDS
        try:
            ended = [p.communicate(timeout=deadline - time.monotonic()) for p in pair]
        finally:
            self.end_all()
        return [(p.returncode, *texts) for p, texts in zip(pair, ended, strict=True)]


def fault_arguments(fault):
    """The script that brings a fault (kind, place) about, before `train.py`; none for None."""
    return [] if fault is None else [str(ROOT / "tests" / "faulty.py"), *fault]


def wait_for_step(run, step, process):
    """Returns when the run has logged `step`."""

    def logged():
        rows = read_metrics(run).rows["train"]
        return rows and rows[-1]["step"] >= step

    wait_until(logged, process)


def wait_until(condition, process, pause=0.02):
    """Returns when `condition()` holds while `process` runs, looking every `pause` seconds."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"what was waited for did not happen: {process.communicate()}")
        time.sleep(pause)
