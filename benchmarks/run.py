"""Speed of the training step against the machine's own limit, memory, and time to the first step.

    python benchmarks/run.py [--quick] [--json FILE]

Measured at 4 layers, 4 heads, width 256, vocabulary 4096, T 128, batch 32 in the default type:
norm-free ReLU and LayerNorm GELU. Every round times one matrix product for the peak, one step of
each variant and one telemetry probe of 16 sequences, in one process, so that a busy machine slows
all alike: read the ratios.
FLOPs are counted by formula (`step_flops`), never from the compiler, which counts a loop body once.
"""

import argparse
import dataclasses
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # configs/ is not part of the installed package

VARIANTS = {"norm-free ReLU": ("none", "relu"), "LayerNorm GELU": ("layernorm", "gelu")}
PEAK_SIZE = 2048


def step_flops(model: Any, vocab_size: int, sequences: int) -> float:
    """Floating-point operations of one training step.

    Per token 6 for each weight of a matrix product, the tied head included, and for causal
    attention 6 L D T: two products of T²/2 x D multiply-adds, forward and twice backward.
    """
    layer = 4 * model.embed_dim**2 + 2 * model.embed_dim * model.mlp_width
    weights = model.num_layers * layer + vocab_size * model.embed_dim
    attention = model.num_layers * model.embed_dim * model.context_length
    return 6 * (weights + attention) * sequences * model.context_length


def measure_steps(quick: bool) -> dict[str, Any]:
    """Runs in a child: medians over interleaved rounds."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from configs.default import get_config
    from nfllm.config import Config
    from nfllm.data.batches import Batch
    from nfllm.model.decoder import Decoder
    from nfllm.training.optimizer import make_optimizer
    from nfllm.training.parallel import Parallel, configure_devices
    from nfllm.training.program import dtype_of
    from nfllm.training.schedules import make_schedule
    from nfllm.training.state import init_state
    from nfllm.training.step import make_train_step
    from nfllm.training.telemetry import make_probe

    vocab_size, sequences = 4096, 32
    shape = {"num_layers": 4, "num_heads": 4, "embed_dim": 256, "context_length": 128}
    base = Config.from_dict(get_config())
    base = dataclasses.replace(
        base, training=dataclasses.replace(base.training, batch_size=sequences)
    )
    configure_devices(base)
    dtype = dtype_of(base.training.dtype)

    def trainer(normalization: str, activation: str) -> Any:
        choice = {"normalization": normalization, "activation": activation}
        config = dataclasses.replace(base, model=dataclasses.replace(base.model, **shape, **choice))
        model = Decoder(config.model, vocab_size, dtype)
        schedule = make_schedule(config.optimizer, config.training.steps)
        optimizer = make_optimizer(config.optimizer, schedule)
        parallel = Parallel(config)
        state = parallel.init(lambda key: init_state(key, model, optimizer), jax.random.key(0))
        step = parallel.train_step(
            make_train_step(model, optimizer, schedule, config.optimizer, config.training)
        )
        tokens = np.random.RandomState(0).randint(0, vocab_size, (sequences, 128)).astype(np.int32)
        batch = parallel.put_train(Batch(tokens, tokens))

        probe, probe_tokens = make_probe(model), parallel.put_probe(tokens[:16])

        def one_step() -> None:
            nonlocal state
            state, metrics = step(state, batch)
            jax.block_until_ready(metrics)

        def one_probe() -> None:
            probe(state.params, probe_tokens)

        return one_step, one_probe, step_flops(config.model, vocab_size, sequences)

    matrix = jax.random.normal(jax.random.key(1), (PEAK_SIZE, PEAK_SIZE)).astype(dtype)
    product = jax.jit(jnp.matmul)
    peak_flops = 2.0 * PEAK_SIZE**3
    trainers = {name: trainer(*choice) for name, choice in VARIANTS.items()}
    jobs = {name: step for name, (step, _, _) in trainers.items()}
    jobs["probe"] = trainers["norm-free ReLU"][1]
    jobs["peak"] = lambda: jax.block_until_ready(product(matrix, matrix))

    rounds = 5 if quick else 40
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    cpu: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(rounds + 2):
        for name, job in jobs.items():
            wall, used = time.perf_counter(), time.process_time()
            job()
            if number >= 2:
                seconds[name].append(time.perf_counter() - wall)
                cpu[name].append(time.process_time() - used)
    peak_rate = peak_flops / float(np.median(seconds["peak"]))
    probe_share = float(np.median(seconds["probe"]) / np.median(seconds["norm-free ReLU"]))
    result: dict[str, Any] = {
        "probe_share_of_a_step": probe_share,
        "backend": jax.default_backend(),
        "devices": jax.device_count(),
        "dtype": str(dtype),
        "jax": jax.__version__,
        "peak_gflops": peak_rate / 1e9,
        "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }
    for name in VARIANTS:
        flops = trainers[name][2]
        low, middle, high = np.percentile(seconds[name], [25, 50, 75])
        result[name] = {
            "ms": middle * 1e3,
            "ms_quartiles": [low * 1e3, high * 1e3],
            "tokens_per_second": sequences * 128 / middle,
            "cpu_seconds": float(np.median(cpu[name])),
            "share_of_peak": flops / middle / peak_rate,
        }
    return result


def measure_start(quick: bool) -> dict[str, float]:
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
            if quick:
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


def in_child(function: str, quick: bool) -> Any:
    """The result of `function(quick)`, in a process of its own."""
    command = [sys.executable, __file__, "--child", function, *(["--quick"] if quick else [])]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few rounds: does it run?")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--child", choices=["measure_steps"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure_steps(options.quick)))
        return
    steps = in_child("measure_steps", options.quick)
    start = measure_start(options.quick)
    print(
        f"{steps['backend']}, {steps['devices']} device(s), {steps['dtype']}, jax {steps['jax']}, "
        f"Python {platform.python_version()}, {platform.machine()}, {time.strftime('%Y-%m-%d')}"
    )
    print(f"matrix product {PEAK_SIZE}^3: {steps['peak_gflops']:.0f} GFLOP/s")
    print(
        f"{'training step':16} {'ms (quartiles)':>22} {'tokens/s':>9} {'CPU s':>6} {'of peak':>8}"
    )
    for name in VARIANTS:
        row = steps[name]
        low, high = row["ms_quartiles"]
        print(
            f"{name:16} {row['ms']:>8.0f} ({low:.0f} to {high:.0f})".ljust(39)
            + f" {row['tokens_per_second']:>9,.0f} {row['cpu_seconds']:>6.2f} "
            f"{row['share_of_peak']:>8.1%}"
        )
    share = steps["probe_share_of_a_step"]
    print(f"a probe costs {share:.0%} of a step: {share / 100:.2%} of the time at one in 100 steps")
    print(f"peak memory: {steps['peak_memory_gb']:.2f} GB, both models in one process")
    print(
        f"time to the first step: {start['nothing_prepared_s']:.1f} s with nothing prepared, "
        f"{start['data_prepared_and_compiled_s']:.1f} s after that"
    )
    if options.json:
        options.json.write_text(json.dumps({"steps": steps, "start": start}, indent=1) + "\n")


if __name__ == "__main__":
    main()
