"""Peak memory and time of attention entropy, with and without the probabilities.

    python benchmarks/entropy.py [--quick] [--json FILE]

At T = 4096 with 12 heads of width 64 (--quick: T = 1024) in float32, each way in its own process:

- probabilities: softmax of all logits, then their entropy
- logits: all logits are given; entropy is computed from blocks of logits
- queries and keys: logits are computed block by block too

"temporaries" is the memory that XLA allocates beside input and output; "peak" is the rise of the
process's resident memory during the call, on Linux. Both are also given as a share of the size of
the probabilities.
At T = 4096 the two ways without probabilities should stay under an eighth. The error is against
float64, over the queries of one head.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

HEADS, WIDTH = 12, 64
WAYS = ("probabilities", "logits", "queries and keys")


def measure(way: str, length: int) -> dict[str, float]:
    """Measures one way, in a child process: compiles it, then calls it."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from nfllm import analysis

    def scores(q: jax.Array, k: jax.Array) -> jax.Array:
        return jnp.einsum("htk,hsk->hts", q, k) * WIDTH**-0.5

    def from_probs(q: jax.Array, k: jax.Array) -> jax.Array:
        visible = jnp.broadcast_to(analysis.causal_mask(length), (HEADS, length, length))
        probs = jax.nn.softmax(jnp.where(visible, scores(q, k), -jnp.inf), axis=-1)
        return analysis.attention_entropy(probs)

    def from_logits(logits: jax.Array) -> jax.Array:
        return analysis.attention_entropy_from_logits(logits, causal=True)

    q, k = 2 * jax.random.normal(jax.random.key(0), (2, HEADS, length, WIDTH))
    entropy, inputs = {
        "probabilities": (from_probs, (q, k)),
        "logits": (from_logits, (jax.jit(scores)(q, k),) if way == "logits" else (q,)),
        "queries and keys": (analysis.attention_entropy_from_qk, (q, k)),
    }[way]
    jax.block_until_ready(inputs)
    program = jax.jit(entropy).lower(*inputs).compile()

    reset_peak_memory()
    before = resident_bytes("VmRSS")
    result = jax.block_until_ready(program(*inputs))
    peak = resident_bytes("VmHWM") - before
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        jax.block_until_ready(program(*inputs))
        seconds.append(time.perf_counter() - begin)

    exact = np.asarray(q[0], np.float64) @ np.asarray(k[0], np.float64).T * WIDTH**-0.5
    exact = np.where(np.tri(length, dtype=bool), exact, -np.inf)
    p = np.exp(exact - exact.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    reference = -(p * np.log(np.where(p > 0, p, 1))).sum(-1)
    return {
        "temporary_bytes": program.memory_analysis().temp_size_in_bytes,
        "peak_bytes": peak,
        "seconds": sorted(seconds)[len(seconds) // 2],
        "max_error_nats": float(np.abs(np.asarray(result[0]) - reference).max()),
    }


def resident_bytes(field: str) -> float:
    """A field of /proc/self/status, in bytes; NaN if there is no such file."""
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return 1024 * float(lines[field].split()[0])


def reset_peak_memory() -> None:
    """Resets VmHWM, the peak of resident memory, to the current resident memory."""
    peak = Path("/proc/self/clear_refs")
    if peak.exists():
        peak.write_text("5")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="T = 1024")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to FILE")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    length = 1024 if arguments.quick else 4096
    if arguments.way:
        print(json.dumps(measure(arguments.way, length)))
        return

    size = HEADS * length**2 * 4
    print(f"T {length}, {HEADS} heads: the probabilities take {size / 2**20:.0f} MiB")
    print(f"{'entropy from':18}{'temporaries':>20}{'peak':>20}{'seconds':>10}{'error':>10}")
    results = {}
    for way in WAYS:
        command = [
            sys.executable,
            __file__,
            "--way",
            way,
            *(["--quick"] if arguments.quick else []),
        ]
        child = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        row = json.loads(child.stdout.splitlines()[-1])
        results[way] = row
        columns = "".join(
            f"{row[field] / 2**20:9.1f} MiB {row[field] / size:5.1%}"
            for field in ("temporary_bytes", "peak_bytes")
        )
        print(f"{way:18}{columns}{row['seconds']:10.3f}{row['max_error_nats']:10.1e}")
    if arguments.json:
        report = {
            "context_length": length,
            "heads": HEADS,
            "probability_bytes": size,
            "machine": platform.machine(),
            "python": platform.python_version(),
            "ways": results,
        }
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
