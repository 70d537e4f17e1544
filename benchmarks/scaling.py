"""The cost of more devices: bytes sent, losses and overhead, on the virtual devices of one CPU.

    python benchmarks/scaling.py [--json FILE]

Virtual devices share the cores, so nothing here is a speed-up. On 1, 2, 4 and 8 devices (N), with
`pmap` and `fsdp`, one model takes the same steps in two micro-batches (A). The table gives

- MB that a device sends in a step, read from the compiled program: every collective, times the trip
  counts of the loops around it (`known_trip_count` in the program). In a ring, a device sends
  2 (N - 1) / N of an array to all-reduce it, (N - 1) / N to all-gather or exchange it, and N - 1
  times the result to reduce-scatter it;
- the same by formula, for P float32 parameters. pmap all-reduces the gradients once: 2 (N - 1) / N
  x 4 P. fsdp gathers the parameters for the forward and for the backward pass, which the compiler
  moves out of the loop over micro-batches, and all-reduces the gradients of each, since XLA has no
  reduce-scatter on a CPU: (2 + 2 A) (N - 1) / N x 4 P;
- the largest relative difference of a loss from that of one device;
- CPU-seconds per step, relative to one device with pmap: the cost of partitioning.
"""

import argparse
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

from training_parts import make_parts, random_batch, small_config  # noqa: E402

from nfllm.trainer.placement import Placement  # noqa: E402

DEVICES = (1, 2, 4, 8)
STEPS = 6
SEQUENCES, LENGTH, MICRO_BATCHES = 32, 64, 2
MODEL = {"num_layers": 2, "num_heads": 4, "embed_dim": 128, "context_length": LENGTH}

_COLLECTIVE = re.compile(
    r" = (.*?) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\("
)
_ARRAY = re.compile(r"([a-z]+)(\d+)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|\w+_computation)=%([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')


def bytes_sent(program: str, devices: int) -> float:
    """Bytes that one device sends, counted as above, in one execution of a compiled program."""
    computations: dict[str, list[str]] = {}
    entry = name = ""
    for line in program.splitlines():
        head = re.match(r"(ENTRY )?%([\w.-]+) .*\{$", line)
        if head:
            name = head[2]
            entry = name if head[1] else entry
            computations[name] = []
        elif name:
            computations[name].append(line)
    share = (devices - 1) / devices
    factors = {
        "all-reduce": 2 * share,
        "all-gather": share,
        "all-to-all": share,
        "reduce-scatter": devices - 1,
        "collective-permute": 1,
    }

    def sent(name: str) -> float:
        total = 0.0
        for line in computations[name]:
            if found := _COLLECTIVE.search(line):
                total += factors[found[2]] * _num_bytes(found[1])
                continue  # the computation that adds two numbers sends nothing
            trips = _TRIPS.search(line)
            if " while(" in line and trips is None:
                raise ValueError(f"a loop without a known number of trips: {line[:200]}")
            called = _CALLED.findall(line)
            for branches in _BRANCHES.findall(line):
                called += re.findall(r"%([\w.-]+)", branches)
            total += sum(map(sent, called)) * (int(trips[1]) if trips else 1)
        return total

    return sent(entry)


def _num_bytes(result: str) -> float:
    return sum(
        int(bits) / 8 * np.prod([int(n) for n in shape.split(",") if n])
        for _, bits, shape in _ARRAY.findall(result)
    )


def formula(strategy: str, devices: int, parameters: int) -> float:
    passes = 2 if strategy == "pmap" else 2 + 2 * MICRO_BATCHES
    return passes * (devices - 1) / devices * 4 * parameters


def measure(strategy: str, devices: int) -> dict[str, Any]:
    config = small_config(
        model=MODEL,
        parallel={"strategy": strategy},
        training={"batch_size": SEQUENCES, "gradient_accumulation": MICRO_BATCHES},
    )
    parts = make_parts(config)
    parallel = Placement(config, jax.devices()[:devices])
    state = parallel.init(parts.init, jax.random.key(0))
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    client = jax.devices()[0].client
    step = parallel.train_step(parts.train_step)
    batches = [parallel.put_train(random_batch(n, SEQUENCES, LENGTH)) for n in range(STEPS)]
    before = {id(program) for program in client.live_executables()}
    losses = []
    for number, batch in enumerate(batches):
        if number == 1:
            begin = time.process_time()
        state, metrics = step(state, batch)
        losses.append(float(metrics.loss_nats))
    used = (time.process_time() - begin) / (STEPS - 1)
    new = [program for program in client.live_executables() if id(program) not in before]
    texts = [module.to_string() for program in new for module in program.hlo_modules()]
    return {
        "losses": losses,
        "cpu_seconds": used,
        "bytes": sum(bytes_sent(text, devices) for text in texts),
        "formula": formula(strategy, devices, parameters),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    one: dict[str, Any] = {}
    print(f"{'':8} {'devices':>7} {'MB sent':>8} {'formula':>8} {'loss differs':>12} {'CPU':>6}")
    for strategy in ("pmap", "fsdp"):
        for devices in DEVICES:
            row = measure(strategy, devices)
            one = one or row
            differs = np.max(np.abs(np.divide(row["losses"], one["losses"]) - 1))
            rows[f"{strategy} {devices}"] = row
            print(
                f"{strategy:8} {devices:7} {row['bytes'] / 1e6:8.3f} {row['formula'] / 1e6:8.3f} "
                f"{differs:12.1e} {row['cpu_seconds'] / one['cpu_seconds']:6.2f}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
