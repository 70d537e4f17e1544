"""The cost of a training step of every recipe of configs/recipes.py, relative to the plain block.

    python benchmarks/recipes.py [--rounds N] [--json FILE]

One process calls a step of each recipe in turns, so that a busy machine slows all alike; the plain
block is norm-free ReLU. Ratios are medians over the rounds, of CPU-seconds on a CPU and of seconds
elsewhere. The model is the one of benchmarks/run.py, with fewer sequences on a CPU.
"""

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

import jax
from programs import GPT2_124M, SMALL, Trainer, make_config, use_workload
from timing import interleave, ratio

from configs.recipes import get_experiment

PLAIN = "free_relu"


def sections(changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Changes by "section.key" as dictionaries by section."""
    found: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        section, key = name.split(".")
        found.setdefault(section, {})[key] = value
    return found


def measure(rounds: int) -> dict[str, Any]:
    """For each recipe: median milliseconds of a step, and its ratio to the plain block."""
    use_workload(None)
    on_cpu = jax.default_backend() == "cpu"
    workload = SMALL._replace(sequences=8) if on_cpu else GPT2_124M._replace(sequences=128)
    variants = get_experiment("minute").groups["main"].variants
    trainers = {
        name: Trainer(make_config(workload, **sections(dict(variant.changes))), workload)
        for name, variant in variants.items()
    }
    jobs = {name: trainer.step for name, trainer in trainers.items()}
    timings = interleave(jobs, warm=2, timed=rounds)
    compared = "cpu_seconds" if on_cpu else "seconds"
    plain = getattr(timings[PLAIN], compared)
    return {
        "workload": str(workload),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "compared": compared,
        "rounds": rounds,
        "rows": {
            name: {
                "ms": 1e3 * timing.quartiles()[1],
                "ratio": ratio(getattr(timing, compared), plain),
                "finite": trainers[name].finite,
            }
            for name, timing in timings.items()
        },
    }


def table(found: dict[str, Any]) -> str:
    """The measurements as markdown, the cheapest recipe first."""
    unit = "CPU time" if found["compared"] == "cpu_seconds" else "time"
    lines = [
        f"{found['workload']}; {found['device']}, jax {found['jax']}, Python {found['python']}; "
        f"{found['rounds']} rounds",
        "",
        f"| recipe | ms a step | {unit}, relative to {PLAIN} |",
        "|---|--:|--:|",
    ]
    for name, row in sorted(found["rows"].items(), key=lambda item: item[1]["ratio"]):
        note = "" if row["finite"] else " (a step was not finite)"
        lines.append(f"| {name}{note} | {row['ms']:.0f} | {row['ratio']:.2f} |")
    return "\n".join(lines)


def main() -> int:
    """Prints the table; returns 1 if a step was not finite."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20, help="timed steps of each recipe")
    parser.add_argument("--json", type=Path, help="file for the measurements")
    options = parser.parse_args()
    found = measure(options.rounds)
    print(table(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))
    return 0 if all(row["finite"] for row in found["rows"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
