"""The norm-free pair of configs/paper.py --scale gpu, and its page.

Both train at the same time on the device, so that starting and compiling overlap.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from nfllm.config import Config
from nfllm.experiment.grid import expand, load_experiment
from nfllm.experiment.outcome import read_outcome
from parts import source
from parts.rows import Row, Rows

GRID = Path(__file__).with_name("paper_grid.py")

_VOCAB_SIZE = 2048


def run(rows: Rows, rehearse: bool) -> None:
    out = rows.folder / "scratch" / "paper"
    out.mkdir(parents=True, exist_ok=True)
    data = source.data_keys(rows.folder / "scratch", rehearse, _VOCAB_SIZE)
    rows.add("prepare", lambda: source.prepare(data, rehearse))
    overrides: dict[str, Any] = {f"data.{key}": value for key, value in data.items()}
    if rehearse:
        overrides |= _toy()
    entries = expand(load_experiment(GRID, "gpu"), overrides)
    unfinished = [entry for entry in entries if not read_outcome(out, entry).is_final]
    _train({entry.name: entry.config for entry in unfinished}, out)
    for entry in entries:
        rows.add(entry.name.split("/")[1], lambda e=entry: _result(out / e.name, e.config))
    rows.add("report", lambda: _report(out, overrides, rows.folder))


def _toy() -> dict[str, Any]:
    """Keys that make the runs take seconds."""
    model = source.workload(True, 1).model
    return {
        **{f"model.{key}": value for key, value in model.items()},
        "training.steps": 10,
        "evaluation.every": 5,
        "evaluation.max_windows": 8,
        "telemetry.every": 5,
        "checkpoint.every": 0,
    }


def _train(configs: dict[str, Config], out: Path) -> None:
    """Trains all models at the same time; the output of each goes to a log in `out`."""
    environment = {
        **os.environ,
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.4",
    }
    del environment["JAX_PLATFORMS"]  # meant for this process only
    running = []
    for name, config in configs.items():
        log = out / f"{name.replace('/', '-')}.txt"
        command = [sys.executable, "-m", "nfllm.experiment.worker", str(out / name)]
        command += ["--parent", str(os.getpid()), "--linear-replacement"]
        with open(log, "w") as file:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=source.ROOT,
                text=True,
            )
        assert process.stdin is not None
        with process.stdin as stdin:
            json.dump(config.to_dict(), stdin)
        running.append((name, process, log))
    for name, process, log in running:
        print(f"{name}: ended with {process.wait()}\n{log.read_text()[-1500:]}", flush=True)


def _result(run: Path, config: Config) -> Row:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evaluation = [line for line in lines if line["kind"] == "eval"][-1]
    entropy_LH = [line for line in lines if line["kind"] == "telemetry"][-1]["entropy_nats"]
    if evaluation["step"] != config.training.steps:
        raise RuntimeError(f"{run.name} stopped at step {evaluation['step']}")
    tokens = config.training.batch_size * config.model.context_length
    return {
        "steps": evaluation["step"],
        "tokens": evaluation["step"] * tokens,
        "loss_nats": evaluation["eval_loss_nats"],
        "perplexity": evaluation["eval_perplexity"],
        "entropy_by_layer": [sum(heads) / len(heads) for heads in entropy_LH],
        "tokens_per_second": [line for line in lines if line["kind"] == "train"][-1][
            "tokens_per_second"
        ],
    }


def _report(out: Path, overrides: dict[str, Any], folder: Path) -> Row:
    """Writes the page of the grid with the users' command, which finds every run finished."""
    command = [sys.executable, "-m", "nfllm.experiment", str(GRID)]
    command += ["--scale", "gpu", "--out", str(out)]
    command += [f"--config.{key}={value}" for key, value in overrides.items()]
    source.run(command)
    (page,) = out.rglob("index.html")
    shutil.copy(page, folder / "paper.html")
    return {"page": "paper.html"}
