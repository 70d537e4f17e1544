"""The results of benchmarks/run.py, as text."""

from typing import Any


def table(found: dict[str, Any]) -> str:
    """All results as lines of text."""
    steps, rows = found["steps"], found["steps"]["rows"]
    reference = "LayerNorm GELU"
    unit = "CPU-seconds" if steps["compared"] == "cpu_seconds" else "seconds"
    lines = [
        f"{steps['devices']} device(s), {steps['dtype']}, jax {steps['jax']}, {steps['torch']}, "
        f"Python {found['python']}, {found['machine']}, {found['date']}",
        f"{steps['workload']}; {steps['rounds']} timed rounds",
        f"matrix product {steps['peak_size']}^3: {steps['peak_gflops']:,.0f} GFLOP/s; copy "
        f"{steps['copy_gbytes_per_second']:,.0f} GB/s read and written",
        "",
        f"{'':24}{'ms (quartiles)':>24}{'CPU s':>9}{'first s':>9}{'programs':>9}"
        f"{f'of {reference}, {unit}':>32}",
    ]
    for name, row in rows.items():
        low, middle, high = row["ms"]
        line = (
            f"{name:24}{f'{middle:.1f} ({low:.1f} to {high:.1f})':>24}{row['cpu_seconds']:>9.3f}"
            f"{row['first_call_seconds']:>9.1f}{row['compilations']:>9}{row['against_step']:>32.3f}"
        )
        if "share_of_peak" in row:
            line += (
                f"  {row['tokens_per_second']:,.0f} tokens/s, {row['share_of_peak']:.1%} of peak"
            )
        lines.append(line)

    share = {name: row["against_step"] for name, row in rows.items()}
    lines += [
        "",
        f"of a {reference} step, {unit}: head {1 - share['no head']:.1%}, attention "
        f"{1 - share['no attention']:.1%}, optimizer {1 - share['no optimizer']:.1%}, "
        f"backward and optimizer {1 - share['forward only']:.1%}",
        f"telemetry: entropy in every step {share['entropy every step'] - 1:+.1%}; a probe every "
        f"step {share['probe']:.1%}, every 100 steps {share['probe'] / 100:.2%}",
        "added to a step: "
        + ", ".join(
            f"{name} {share[name] - 1:+.1%}"
            for name in ("gradient norms", "entropy regularizer", "QK-clip", "muon")
        ),
    ]
    for peer in steps["peers"]:
        by_the_clock = rows[peer]["seconds_against_step"]
        lines.append(
            f"{reference} against {peer}: {share[peer]:.2f} times as fast in {unit}, "
            f"{by_the_clock:.2f} by the clock"
        )
    if not steps["peers"]:
        lines.append("torch: not measured")
    start = found["start"]
    lines += [
        f"input stall {found['input']['stall']:.1%} of a step of the default config; waiting "
        f"{found['input']['waiting']:.2%}",
        f"peak memory {found['memory']['peak_gb']:.2f} GB (norm-free ReLU alone)",
        f"time to the first step: {start['nothing_prepared_s']:.1f} s with nothing prepared, "
        f"{start['data_prepared_and_compiled_s']:.1f} s after that",
    ]
    return "\n".join(lines)
