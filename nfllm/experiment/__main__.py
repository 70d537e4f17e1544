"""python -m nfllm.experiment CONFIG --scale SCALE --out DIR [--config.SECTION.KEY=VALUE ...]"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import jax
from etils import epath

from nfllm.config import ConfigError
from nfllm.config.extensions import add_import_flag
from nfllm.config.paths import make_writable
from nfllm.experiment.grid import expand, load_experiment, read_overrides, select
from nfllm.experiment.outcome import refuse_other_runs
from nfllm.experiment.provenance import Provenance
from nfllm.experiment.scheduler import run_grid
from nfllm.experiment.slots import find_machine
from nfllm.experiment.write import write_results
from nfllm.rundir import RunError
from nfllm.trainer import lock


def main(arguments: list[str] | None = None) -> int:
    """Runs a grid and writes its report.

    The same command continues an interrupted experiment, and skips finished runs.

    Returns:
      The exit status: 0, 1 if a run failed, 2 for a bad argument, or 130 after an interruption.
    """
    parser = argparse.ArgumentParser(
        prog="python -m nfllm.experiment",
        description="Trains a grid of configs and compares the runs on one page.",
        epilog="--config.SECTION.KEY=VALUE sets a key in every run.",
    )
    parser.add_argument("config", type=Path, help="the file of a grid, such as configs/paper.py")
    parser.add_argument("--scale", required=True, help="one of the grid's SCALES")
    parser.add_argument("--out", type=Path, required=True, help="directory of runs and report")
    parser.add_argument(
        "--jobs",
        type=int,
        help="most runs at the same time; at most one for each device, on a CPU for each core",
    )
    parser.add_argument(
        "--only",
        metavar="PATTERN",
        default="*",
        help="train only the runs whose GROUP/VARIANT/seedN matches, such as 'main/*/seed0'; the "
        "page is that of the whole grid",
    )
    add_import_flag(parser)
    options, rest = parser.parse_known_args(arguments)
    if options.jobs is not None and options.jobs < 1:
        parser.error(f"--jobs {options.jobs} must be at least 1")
    try:
        experiment = load_experiment(options.config, options.scale)
        entries = expand(experiment, read_overrides(rest))
        chosen = select(entries, options.only)
        only = [] if options.only == "*" else [f"--only={options.only}"]
        given = [*only, *(f"--import={file}" for file in options.imports), *rest]
        machine = find_machine(options.jobs)
        make_writable(epath.Path(options.out), "--out")
        # This process computes little and leaves the accelerator to the runs.
        jax.config.update("jax_platforms", "cpu")
        with lock.hold(options.out, "--out"):
            refuse_other_runs(chosen, options.out)
            print(experiment.note)
            with Provenance.record(options.out, options.config, options.scale, machine, given):
                outcomes, is_done = run_grid(entries, chosen, options.out, machine.slots)
            page, results = write_results(experiment, entries, outcomes, options.out)
    except (ConfigError, RunError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # a second Ctrl-C: the runs save and end without this process
        return 130
    text = results.read_text(encoding="utf-8")
    print(text.encode(sys.stdout.encoding, "replace").decode(sys.stdout.encoding))
    print(f"report   {page}\nresults  {results}")
    if not is_done:
        print("interrupted; the same command continues it")
        return 130
    return int(any(outcome.status == "failed" for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
