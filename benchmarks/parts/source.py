"""Training text that every machine has: the Python source of installed packages."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from programs import GPT2_124M, SMALL, Workload

from parts.rows import Row

ROOT = Path(__file__).parents[2]

_PACKAGES = ("torch", "transformers")
_WITHOUT_THEM = ("jax", "flax", "numpy")


def folders(rehearse: bool) -> str:
    """`data.sources`: folders of packages, separated by commas."""
    if rehearse:
        library = Path(json.__file__).parents[1]
        return ",".join(str(library / name) for name in ("asyncio", "email", "unittest"))
    found = [folder for name in _PACKAGES if (folder := _folder(name))]
    found = found or [folder for name in _WITHOUT_THEM if (folder := _folder(name))]
    return ",".join(found)


def workload(rehearse: bool, sequences: int) -> Workload:
    """GPT-2 124M at T 128, or a toy model."""
    if rehearse:
        return SMALL._replace(layers=2, width=32, context_length=32, sequences=8)
    return GPT2_124M._replace(sequences=sequences)


def data_keys(scratch: Path, rehearse: bool, vocab_size: int = 50304) -> dict[str, Any]:
    """The section `data` of the runs of a part."""
    return {
        "dataset": "python_source",
        "sources": folders(rehearse),
        "data_dir": str(scratch / "data"),
        "vocab_size": 512 if rehearse else vocab_size,
    }


def prepare(keys: dict[str, Any], rehearse: bool) -> Row:
    """Prepares documents, tokenizer and tokens; returns the seconds that it took.

    `keys` is the section `data`.
    """
    command = [sys.executable, "-m", "nfllm.data"]
    command += [f"--config.data.{key}={value}" for key, value in keys.items()]
    length = workload(rehearse, 1).context_length
    command.append(f"--config.model.context_length={length}")
    begin = time.perf_counter()
    lines = dict(line.split(None, 1) for line in run(command).splitlines() if " " in line)
    return {"seconds": time.perf_counter() - begin, "train": lines["train"].strip()}


def run(command: list[str]) -> str:
    """The output of a command of the project, which is also logged.

    Raises:
      RuntimeError: the command failed; the message has its last line.
    """
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    print(done.stdout, done.stderr[-2000:], flush=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:3])}: {done.stderr.strip().splitlines()[-1:]}")
    return done.stdout


def _folder(name: str) -> str | None:
    spec = importlib.util.find_spec(name)
    return os.path.dirname(spec.origin) if spec is not None and spec.origin else None
