"""Speed of the training step, compared with the machine's limit and with torch.

    python benchmarks/run.py [--rounds N | --quick] [--workload NAME] [--no-peers] [--json FILE]

One process calls in turns: a matrix product for the peak, a memory copy, a step of each variant,
the step with parts left out, the step with telemetry, each implementation of attention, and steps
of Hugging Face GPT-2 if torch and transformers are installed. A busy machine slows all alike: read
the ratios. Other processes measure peak memory, the input pipeline and the time to the first step.

100 timed rounds after 20 to warm up, or --rounds N after N / 5; --quick: 3 after 1. The workload is
a small model on a CPU and GPT-2 124M elsewhere, in the default dtype: float32 on a CPU, bfloat16
elsewhere. FLOPs are counted by formula (`step_flops`), never from the compiler, which counts a
loop body once.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
REFERENCE = "LayerNorm GELU"  # the variant that torch computes too


def measure_steps(options: argparse.Namespace) -> dict[str, Any]:
    """Times all jobs in turns; runs in a child process."""
    import jax
    from peers import make_peers, torch_version
    from programs import (
        ABLATIONS,
        VARIANTS,
        matrix_product,
        memory_copy,
        other_attention,
        use_workload,
        variant,
    )
    from timing import interleave, ratio

    from nfllm.training.build import dtype_of

    workload = use_workload(options.workload)
    jobs: dict[str, Callable[[], object]] = {}
    jobs["matrix product"], operations = matrix_product(workload)
    jobs["copy"], copied_bytes = memory_copy()
    trainers = {name: variant(workload, name) for name in VARIANTS}
    for name, trainer in trainers.items():
        jobs[name] = trainer.step
    jobs["probe"] = trainers[REFERENCE].probe
    for ablation in ABLATIONS:
        jobs[ablation] = variant(workload, REFERENCE, ablation).step
    telemetry = {"entropy_every_step": True}
    jobs["entropy every step"] = variant(workload, REFERENCE, telemetry=telemetry).step
    norms = {"gradient_norms": True}
    jobs["gradient norms"] = variant(workload, REFERENCE, telemetry=norms).step
    objective = {"entropy_weight": 1e-5}
    jobs["entropy regularizer"] = variant(workload, REFERENCE, objective=objective).step
    jobs["QK-clip"] = variant(workload, REFERENCE, optimizer={"qk_clip": 100.0}).step
    jobs["muon"] = variant(workload, REFERENCE, optimizer={"variant": "muon"}).step
    for name in other_attention(trainers[REFERENCE].config):
        model = {"attention_implementation": name}
        jobs[f"{name} attention"] = variant(workload, REFERENCE, model=model).step
    peers = {} if options.no_peers else make_peers(workload, os.cpu_count() or 1)
    rounds = 3 if options.quick else options.rounds
    timings = interleave(jobs | peers, warm=max(1, rounds // 5), timed=rounds)

    peak = operations / timings["matrix product"].quartiles()[1]
    step = timings[REFERENCE]
    on_cpu = jax.default_backend() == "cpu"
    compared = "cpu_seconds" if on_cpu else "seconds"
    # All CPU devices are parts of the machine that the matrix product ran on.
    devices = 1 if on_cpu else jax.device_count()

    def against_step(name: str) -> float:
        return ratio(getattr(timings[name], compared), getattr(step, compared))

    rows = {
        name: {
            "ms": [1e3 * x for x in timing.quartiles()],
            "cpu_seconds": float(sorted(timing.cpu_seconds)[len(timing.cpu_seconds) // 2]),
            "first_call_seconds": timing.first_call_seconds,
            "compilations": timing.compilations,
            "against_step": against_step(name),
            "seconds_against_step": ratio(timing.seconds, step.seconds),
        }
        for name, timing in timings.items()
    }
    for name in VARIANTS:
        seconds = timings[name].quartiles()[1]
        tokens = workload.sequences * workload.model["context_length"]
        rows[name]["tokens_per_second"] = tokens / seconds
        rows[name]["share_of_peak"] = trainers[name].flops / seconds / peak / devices
    return {
        "workload": str(workload),
        "backend": jax.default_backend(),
        "devices": f"{jax.device_count()} {jax.devices()[0].device_kind}",
        "dtype": str(dtype_of("auto")),
        "jax": jax.__version__,
        "torch": torch_version(),
        "compared": compared,
        "rounds": len(step.seconds),
        "peak_size": workload.peak_size,
        "peak_gflops": peak / 1e9,
        "copy_gbytes_per_second": copied_bytes / timings["copy"].quartiles()[1] / 1e9,
        "rows": rows,
        "peers": list(peers),
    }


def measure_memory(options: argparse.Namespace) -> dict[str, float]:
    """Peak memory of three steps of one variant; runs in a child process."""
    from programs import VARIANTS, peak_bytes, use_workload, variant

    trainer = variant(use_workload(options.workload), next(iter(VARIANTS)))
    for _ in range(3):
        trainer.step()
    return {"peak_gb": peak_bytes() / 1e9}


def measure_input(options: argparse.Namespace) -> dict[str, float]:
    """The share of a step that real input costs (benchmarks/data.py); runs in a child process."""
    from data import measure_stall

    with tempfile.TemporaryDirectory() as folder:
        return measure_stall(folder, options.quick)


def measure_start(options: argparse.Namespace) -> dict[str, float]:
    """Seconds from the command `train.py` to its first step, with an empty and a full cache."""
    with tempfile.TemporaryDirectory() as folder:

        def run(name: str) -> float:
            command = [
                sys.executable,
                str(ROOT / "train.py"),
                f"--workdir={folder}/{name}",
                "--config.training.steps=1",
                "--config.training.log_every=1",
                "--config.evaluation.max_windows=32",
                f"--config.data.data_dir={folder}/data",
                f"--config.training.compilation_cache={folder}/compiled",
            ]
            if options.quick:
                command.append("--config.data.tokenizer=bytes")
            begin = time.time()
            subprocess.run(
                command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            lines = Path(folder, name, "metrics.jsonl").read_text().splitlines()
            first = next(line for line in map(json.loads, lines) if line["kind"] == "train")
            started = Path(folder, name, "config.json").stat().st_mtime
            return started + first["elapsed_seconds"] - begin

        return {
            "nothing_prepared_s": run("first"),
            "data_prepared_and_compiled_s": run("second"),
        }


CHILDREN = {f.__name__: f for f in (measure_steps, measure_memory, measure_input)}


def in_child(name: str, arguments: list[str]) -> Any:
    """The result of a function of `CHILDREN` in a child process, whose stdout goes to stderr."""
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ}  # torch needs memory too
    with tempfile.NamedTemporaryFile("r", suffix=".json") as result:
        command = [sys.executable, __file__, *arguments, "--child", name, "--json", result.name]
        subprocess.run(command, check=True, stdout=sys.stderr, env=environment)
        return json.load(result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few rounds, to see that all jobs run")
    parser.add_argument("--rounds", type=int, default=100, help="timed calls of each job")
    parser.add_argument(
        "--workload",
        choices=["small", "small_1024", "gpt2", "gpt2_1024"],
        help="instead of the machine's default; _1024: context of 1024 tokens, not 128",
    )
    parser.add_argument("--no-peers", action="store_true", help="leave torch out")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--child", choices=CHILDREN, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        options.json.write_text(json.dumps(CHILDREN[options.child](options)))
        return
    found = {name.removeprefix("measure_"): in_child(name, sys.argv[1:]) for name in CHILDREN} | {
        "start": measure_start(options)
    }
    from table import table

    found["date"] = time.strftime("%Y-%m-%d")
    found["python"], found["machine"] = platform.python_version(), platform.machine()
    print(table(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
