"""All measurements on an accelerator, in parts that can be interrupted and continued.

    python benchmarks/accelerator.py --out DIR [--budget SECONDS] [--parts a,b,...]
    python benchmarks/accelerator.py --out DIR --table
    python benchmarks/accelerator.py --out DIR --rehearse

Each part runs in its own process with its own time limit, and writes DIR/PART.json after every row;
DIR/log.txt has the output of all parts. A part that fails or exceeds its limit is reported, and the
next one runs. The same command with the same DIR measures the missing parts; `--table` prints the
results as markdown. On one H100, three commands measure everything:

    python benchmarks/accelerator.py --out DIR --budget 360 --parts facts,numbers,attention,step
    python benchmarks/accelerator.py --out DIR --budget 290 --parts peers,job
    python benchmarks/accelerator.py --out DIR --budget 600 --parts paper

`--rehearse` runs the same code at toy sizes, on a CPU too; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from parts import PARTS

ROOT = Path(__file__).parents[1]

_LAST_LINES = 12
_REHEARSAL_PATIENCE = 5  # factor of the time limits: other work may share the machine
_SHORTEST_SECONDS = 10  # a part with less time than this is not started


def main() -> int:
    """Runs the parts; returns 1 if a part has no complete result, 2 for a bad argument."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="directory of the results")
    parser.add_argument("--budget", type=float, help="seconds for all parts; 780 without it")
    parser.add_argument("--parts", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--rehearse", action="store_true", help="toy sizes, on any device")
    parser.add_argument("--table", action="store_true", help="print the results as markdown")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = [name for name in options.parts.split(",") if name]
    unknown = sorted(set(names) - set(PARTS))
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}; choose from {', '.join(PARTS)}")
    if options.table:
        from accelerator_table import table

        print(table(options.out))
        return 0
    if options.child:
        return _measure(options)
    # Python would otherwise end without ending the part, which holds the device.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    options.out.mkdir(parents=True, exist_ok=True)
    device = _device()
    if device["backend"] == "cpu" and not options.rehearse:
        print("error: JAX finds no accelerator here; --rehearse tries the code on a CPU")
        return 2
    fault = _other_machine(options.out, device | {"rehearsal": options.rehearse})
    if fault:
        print(f"error: {fault}")
        return 2
    budget = options.budget or (_REHEARSAL_PATIENCE if options.rehearse else 1) * 780.0
    end = time.monotonic() + budget
    print(f"{device['kind']}; {budget:.0f} s for {', '.join(names)}", flush=True)
    results = [_run(name, options, device["kind"], end) for name in names]
    return int(not all(results))


def _measure(options: argparse.Namespace) -> int:
    """Measures one part; runs in a child process."""
    sys.path.insert(0, str(ROOT))
    from parts.rows import Rows

    about = {
        "kind": options.kind,
        "rehearsal": options.rehearse,
        "date": time.strftime("%Y-%m-%d"),
    }
    rows = Rows(options.out, options.child, about, options.limit)
    importlib.import_module(f"parts.{options.child}").run(rows, options.rehearse)
    rows.write(complete=True)
    return 0


def _run(name: str, options: argparse.Namespace, kind: str, end: float) -> bool:
    """Runs one part in a child process up to its limit; returns whether its result is complete."""
    if _is_complete(options.out, name):
        print(f"{name}: complete before", flush=True)
        return True
    left = end - time.monotonic()
    patience = _REHEARSAL_PATIENCE if options.rehearse else 1
    limit = min(left, patience * PARTS[name].limit_seconds)
    if limit < _SHORTEST_SECONDS:
        print(f"{name}: not started, {left:.0f} s of the budget are left", flush=True)
        return False
    command = [sys.executable, __file__, "--out", str(options.out), "--child", name]
    command += [
        "--kind",
        kind,
        "--limit",
        str(limit),
        *(["--rehearse"] if options.rehearse else []),
    ]
    environment = {**os.environ, "PYTHONPATH": _python_path(), "PYTHONUNBUFFERED": "1"}
    environment |= PARTS[name].environment
    begin = time.monotonic()
    log_path = options.out / "log.txt"
    with open(log_path, "a", encoding="utf-8") as log:
        log.write(f"\n== {name}\n")
        log.flush()
        start = log_path.stat().st_size
        # A process group of its own, so that processes started by the part end with it.
        child = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            code: int | None = child.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(child)
    seconds = time.monotonic() - begin
    if code == 0 and _is_complete(options.out, name):
        print(f"{name}: complete after {seconds:.0f} s", flush=True)
        return True
    how = f"cut at its limit of {limit:.0f} s" if code is None else f"ended with {code}"
    print(f"{name}: {how} after {seconds:.0f} s; {_progress(options.out, name)}", flush=True)
    for line in _tail(log_path, start):
        print(f"    {line}")
    return False


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ends all remaining processes of a child's group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _python_path() -> str:
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def _device() -> dict[str, Any]:
    """Backend and kind of the device that JAX finds, without holding its memory afterwards."""
    code = "import jax; print(jax.default_backend(), jax.devices()[0].device_kind, sep='\\t')"
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    if found.returncode:
        sys.exit(f"error: JAX does not start here:\n{found.stderr.strip()}")
    backend, _, kind = found.stdout.strip().splitlines()[-1].partition("\t")
    return {"backend": backend, "kind": kind}


def _other_machine(out: Path, about: dict[str, Any]) -> str | None:
    """Why this machine cannot continue the results in `out`; None if it can."""
    for path in (out / f"{name}.json" for name in PARTS):
        there = _read(path)
        for key in ("kind", "rehearsal"):
            if there and there[key] != about[key]:
                return (
                    f"{path} was measured with {key}={there[key]!r}, but this is "
                    f"{about[key]!r}; choose another --out"
                )
    return None


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None


def _is_complete(out: Path, name: str) -> bool:
    found = _read(out / f"{name}.json")
    return found is not None and found["complete"]


def _progress(out: Path, name: str) -> str:
    found = _read(out / f"{name}.json")
    rows = found["rows"] if found else {}
    failed = [row for row, values in rows.items() if "error" in values]
    note = f", of which failed: {', '.join(failed)}" if failed else ""
    return f"{len(rows)} rows{note}"


def _tail(path: Path, start: int) -> list[str]:
    with open(path, "rb") as file:
        file.seek(start)
        lines = file.read().decode(errors="replace").splitlines()
    return [line[:300] for line in lines[-_LAST_LINES:]]


if __name__ == "__main__":
    sys.exit(main())
