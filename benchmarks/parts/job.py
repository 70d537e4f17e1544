"""`train.py` with GPT-2 124M, from command to last step, on source code of installed packages.

With LayerNorm and GELU, because without norms this model diverges after so short a warmup.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from parts import source
from parts.rows import Row, Rows


def run(rows: Rows, rehearse: bool) -> None:
    scratch = rows.folder / "scratch"
    keys = source.data_keys(scratch, rehearse)
    rows.add("prepare", lambda: source.prepare(keys, rehearse))
    compiled = scratch / "compiled"
    if not rows.has("nothing compiled"):
        shutil.rmtree(compiled, ignore_errors=True)
    for name, log_every in (("nothing compiled", 1), ("compiled before", 25)):
        rows.add(name, lambda n=name, e=log_every: _train(scratch, compiled, n, e, rehearse))


def _train(scratch: Path, compiled: Path, name: str, log_every: int, rehearse: bool) -> Row:
    steps, sequences = (30, 8) if rehearse else (60, 512)
    workdir = scratch / f"job {name}".replace(" ", "_")
    shutil.rmtree(workdir, ignore_errors=True)
    keys = {
        **{f"model.{k}": v for k, v in source.workload(rehearse, sequences).model.items()},
        **{f"data.{k}": v for k, v in source.data_keys(scratch, rehearse).items()},
        "training.steps": steps,
        "training.batch_size": sequences,
        "training.log_every": log_every,
        "training.compilation_cache": str(compiled),
        "model.normalization": "layernorm",
        "model.activation": "gelu",
        "optimizer.learning_rate": 6e-4,
        "evaluation.every": 0,
        "evaluation.batch_size": 8 if rehearse else 256,
        "evaluation.max_windows": 8 if rehearse else 2048,
        "telemetry.every": 0,
        "checkpoint.every": steps // 2,
    }
    command = [sys.executable, "train.py", "--noreport", f"--workdir={workdir}"]
    command += [f"--config.{key}={value}" for key, value in keys.items()]
    begin = time.time()
    source.run(command)
    seconds = time.time() - begin
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {
        "whole_command_seconds": seconds,
        "log_every": log_every,
        **_of_lines(lines, (workdir / "config.json").stat().st_mtime - begin),
    }


def _of_lines(lines: list[dict[str, Any]], start_seconds: float) -> Row:
    """Speed and pauses from the metrics of a run that began to train after `start_seconds`."""
    told = [line for line in lines if line["kind"] == "train"]
    speeds = [line["tokens_per_second"] for line in told[1:]]
    per_step = told[0]["tokens"] / told[0]["step"]
    median = float(np.median(speeds))
    steps = told[-1]["step"] - told[0]["step"]
    elapsed = told[-1]["elapsed_seconds"] - told[0]["elapsed_seconds"]
    first = told[0]["elapsed_seconds"] - (told[0]["step"] - 1) * per_step / median
    waited = told[-1]["input_wait_seconds"] - told[0]["input_wait_seconds"]
    evaluation = next(line for line in lines if line["kind"] == "eval")
    return {
        "first_step_seconds": start_seconds + first,
        "tokens_per_second": median,
        "tokens_per_second_with_pauses": steps * per_step / elapsed,
        "pauses_seconds": elapsed - steps * per_step / median,
        "input_wait_share": waited / elapsed,
        "steps": told[-1]["step"],
        "first_loss": told[0]["loss_nats"],
        "evaluation_loss": evaluation["eval_loss_nats"],
    }
