"""Speed of batches to the device, time that training waits for them, and cost of preparing data.

    python benchmarks/data.py [--quick] [--json FILE]

- batches: tokens/s that one host thread delivers to the first device at T 128, batch 512, from a
  memory-mapped token file in shuffled order (target: 50 M/s), for both kinds of windows
- stall: the default experiment's own steps with prefetched batches, and with one batch that stays
  on the device; stall is 1 - synthetic/real, the share of a step that real input costs. It also
  gives the measured share of time that the loop waits
- prepare: 350 MB of Python (--quick: 35 MB) from jsonl.gz to tokens, in its own process:
  seconds, MB/s, and peak resident memory (target: under 2 GB)

The corpus is the standard library's source, repeated with a different first line in each copy until
it has the size. Everything is written to a temporary directory.
"""

import argparse
import dataclasses
import gzip
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CONTEXT_LENGTH, BATCH_SIZE = 128, 512
ROOT = Path(__file__).parents[1]


def default_config(**data: Any) -> Any:
    """The default experiment with some keys of its section `data` changed."""
    from nfllm.config import Config, get_config

    values = get_config().to_dict()
    values["data"] |= data
    return Config.from_dict(values)


def measure_batches(directory: str, quick: bool) -> dict[str, float]:
    """Tokens per second through the prefetching thread to the device, for each kind of window."""
    import jax

    from nfllm import data

    steps = 300 if quick else 3000
    rates = {}
    for window in ("packed", "documents"):
        config = default_config(data_dir=directory, window=window)
        windows = data.load(config.data, CONTEXT_LENGTH).train

        def make(step: int, windows: data.Windows = windows) -> data.batches.Batch:
            return data.batches.train_batch(windows, 0, step, BATCH_SIZE)

        with data.batches.prefetch(make, 0, steps, jax.device_put) as batches:
            jax.block_until_ready(next(batches))
            begin = time.perf_counter()
            for batch in batches:
                jax.block_until_ready(batch)
            seconds = time.perf_counter() - begin
        rates[window] = (steps - 1) * BATCH_SIZE * CONTEXT_LENGTH / seconds
    return rates


def measure_stall(directory: str, quick: bool) -> dict[str, float]:
    """Seconds per training step with real and synthetic input, in turns, as medians of rounds."""
    import jax

    from nfllm.trainer.program import Program

    steps, rounds = 10, 3 if quick else 25
    config = default_config(data_dir=directory)
    config = dataclasses.replace(
        config, training=dataclasses.replace(config.training, steps=steps * rounds + 2)
    )
    program = Program(config)
    state = program.init_state()
    seconds: dict[str, list[float]] = {"real": [], "synthetic": []}
    with program.train_batches(0) as batches:
        fixed = next(batches)
        for batch in (fixed, next(batches)):
            state, metrics = program.train_step(state, batch)
        jax.block_until_ready(metrics)
        waited = batches.waited_seconds
        for _ in range(rounds):
            for kind in ("synthetic", "real"):
                begin = time.perf_counter()
                for _ in range(steps):
                    batch = fixed if kind == "synthetic" else next(batches)
                    state, metrics = program.train_step(state, batch)
                jax.block_until_ready((state, metrics))
                seconds[kind].append((time.perf_counter() - begin) / steps)
        waited = batches.waited_seconds - waited
    real, synthetic = (statistics.median(seconds[kind]) for kind in ("real", "synthetic"))
    return {
        "real_step_seconds": real,
        "synthetic_step_seconds": synthetic,
        "stall": 1 - synthetic / real,
        "waiting": waited / (steps * sum(seconds["real"])),
    }


def write_corpus(path: Path, megabytes: int) -> None:
    """Python source as jsonl.gz, without two equal documents."""
    from nfllm.data.python_files import standard_library_files

    texts = [file.read_bytes().decode() for file in standard_library_files()]
    size, copy = 0, 0
    with gzip.open(path, "wt", compresslevel=1, encoding="utf-8") as file:
        while size < megabytes * 1_000_000:
            for text in texts:
                file.write(json.dumps({"text": f"# {copy}\n{text}"}) + "\n")
                size += len(text)
            copy += 1


def prepare(source: str, directory: str) -> dict[str, float]:
    """Prepares the corpus once, in a child process, and returns its time and peak memory."""
    from nfllm import data

    config = default_config(
        dataset="text_files", sources=source, data_dir=directory, vocab_size=8192
    )
    begin = time.perf_counter()
    card = data.load(config.data, CONTEXT_LENGTH).card
    seconds = time.perf_counter() - begin
    unit = 1 if sys.platform == "darwin" else 1024
    splits = card["splits"].values()
    return {
        "seconds": seconds,
        "megabytes": sum(split["bytes"] for split in splits) / 1e6,
        "tokens": sum(split["tokens"] for split in splits),
        "peak_bytes": unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def measure_preparation(directory: str, quick: bool) -> dict[str, float]:
    source = Path(directory) / "corpus.jsonl.gz"
    write_corpus(source, 35 if quick else 350)
    command = [sys.executable, __file__, "--prepare", str(source), directory]
    child = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(child.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps, a tenth of the corpus")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to FILE")
    parser.add_argument("--prepare", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.prepare:
        print(json.dumps(prepare(*arguments.prepare)))
        return

    with tempfile.TemporaryDirectory() as directory:
        rates = measure_batches(directory, arguments.quick)
        for window, rate in rates.items():
            print(f"batches   {window:10}{rate / 1e6:8.0f} M tokens/s")
        stall = measure_stall(directory, arguments.quick)
        print(
            f"stall     {stall['stall']:.1%} of a step: {1e3 * stall['real_step_seconds']:.1f} ms "
            f"with real input, {1e3 * stall['synthetic_step_seconds']:.1f} ms with synthetic; "
            f"seen waiting {stall['waiting']:.2%}"
        )
        made = measure_preparation(directory, arguments.quick)
        print(
            f"prepare   {made['megabytes']:.0f} MB, {made['tokens'] / 1e6:.1f} M tokens in "
            f"{made['seconds']:.0f} s: {made['megabytes'] / made['seconds']:.1f} MB/s, peak "
            f"{made['peak_bytes'] / 1e9:.2f} GB"
        )
    if arguments.json:
        report = {
            "context_length": CONTEXT_LENGTH,
            "batch_size": BATCH_SIZE,
            "batches_tokens_per_second": rates,
            "stall": stall,
            "prepare": made,
            "machine": platform.machine(),
            "python": platform.python_version(),
        }
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
