"""The paper's norm-free pair at GPT-2's size, trained for the remaining time, and its page.

Both train at the same time on the device, so that starting and compiling overlap, for the same
number of steps.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from nfllm.config import Config
from nfllm.experiment.grid import expand, load_experiment
from nfllm.experiment.outcome import read_outcome
from parts import source
from parts.rows import Row, Rows

GRID = Path(__file__).with_name("paper_grid.py")

_START_SECONDS = 60  # until both train
_END_SECONDS = 60  # evaluation, checkpoint, linear replacement, report
_SHARE_OF_SPEED = 0.65  # small batches, and two programs share a device
_ASSUMED_SPEED = 400_000.0


def run(rows: Rows, rehearse: bool) -> None:
    scratch = rows.folder / "scratch"
    begin = time.monotonic()
    rows.add("prepare", lambda: source.prepare(scratch, rehearse))
    left = rows.limit_seconds - (time.monotonic() - begin) - _START_SECONDS - _END_SECONDS
    sequences = 8 if rehearse else 64
    tokens_per_step = sequences * source.workload(rehearse, 1).context_length
    speed = _speed(rows.folder) * _SHARE_OF_SPEED
    steps = 10 if rehearse else max(50, int(left * speed / tokens_per_step / 2) // 10 * 10)
    out = scratch / "paper"
    planned = out / "steps.json"  # an interrupted part keeps its number of steps
    if planned.exists():
        steps = json.loads(planned.read_text())
    out.mkdir(parents=True, exist_ok=True)
    planned.write_text(json.dumps(steps))
    overrides = _overrides(scratch, steps, sequences, rehearse)
    entries = expand(load_experiment(GRID, "gpu"), overrides)
    unfinished = [entry for entry in entries if not read_outcome(out, entry).is_final]
    _train({entry.name: entry.config for entry in unfinished}, out)
    for entry in entries:
        rows.add(entry.name.split("/")[1], lambda e=entry: _result(out / e.name, e.config))
    rows.add("report", lambda: _report(out, overrides, rows.folder))


def _speed(folder: Path) -> float:
    """Tokens per second of `train.py` from the part `job`, or an assumption without that part."""
    path = folder / "job.json"
    found = json.loads(path.read_text())["rows"] if path.exists() else {}
    return found.get("compiled before", {}).get("tokens_per_second", _ASSUMED_SPEED)


def _overrides(scratch: Path, steps: int, sequences: int, rehearse: bool) -> dict[str, Any]:
    model = source.workload(rehearse, 1).model
    return {
        **{f"model.{key}": value for key, value in model.items()},
        **{f"data.{key}": value for key, value in source.data_keys(scratch, rehearse).items()},
        "training.steps": steps,
        "training.batch_size": sequences,
        "training.gradient_accumulation": 1,
        "evaluation.batch_size": sequences,
        "evaluation.max_windows": 8 if rehearse else 1024,
        "evaluation.every": max(1, steps // 10),
        "telemetry.every": max(1, steps // 40),
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
