"""The measurements of benchmarks/accelerator.py, as markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from parts import PARTS

Rows = dict[str, dict[str, Any]]


def table(folder: Path) -> str:
    """The results of all parts in `folder`, and the names of missing parts."""
    found = {
        name: json.loads(path.read_text())
        for name in PARTS
        if (path := folder / f"{name}.json").exists()
    }
    if not found:
        return f"{folder} holds no results"
    first = next(iter(found.values()))
    lines = [f"{first['kind']}, {first['date']}"]
    if first["rehearsal"]:
        lines.append("A rehearsal at toy sizes: these numbers mean nothing.")
    peak = found.get("facts", {}).get("rows", {}).get("product bfloat16", {}).get("tflops")
    for name, part in found.items():
        state = "" if part["complete"] else ", not complete"
        lines += ["", f"### {name} ({part['seconds']:.0f} s{state})", ""]
        good = {row: values for row, values in part["rows"].items() if "error" not in values}
        lines += _FORMS[name](good, peak)
        lines += [
            f"- {row}: failed: {values['error']}"
            for row, values in part["rows"].items()
            if "error" in values
        ]
        lines += [f"- {row}: {values['note']}" for row, values in good.items() if "note" in values]
    missing = [name for name in PARTS if name not in found]
    if missing:
        lines += ["", f"Not measured: {', '.join(missing)}."]
    return "\n".join(lines)


def _markdown(header: Iterable[str], body: Iterable[Iterable[str]]) -> list[str]:
    header = list(header)
    return ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *body)]


def _facts(rows: Rows, _: float | None) -> list[str]:
    machine = rows.get("machine", {})
    versions = ", ".join(
        f"{name} {version}" for name, version in machine.get("versions", {}).items()
    )
    lines = [
        f"{machine.get('driver') or machine.get('kind')}; {machine.get('memory_gb', 0):.0f} GB for "
        f"JAX; Python {machine.get('python')}, {versions}",
        "",
    ]
    body = [
        (name, " x ".join(map(str, row["shape"])), f"{row['ms']:.3g}", f"{row['tflops']:.0f}")
        for name, row in rows.items()
        if "tflops" in row
    ]
    lines += _markdown(("product", "shape", "ms", "TFLOP/s"), body)
    if "copy" in rows:
        lines.append(f"\nCopy: {rows['copy']['gbytes_per_second']:,.0f} GB/s, read and written.")
    return lines


def _numbers(rows: Rows, _: float | None) -> list[str]:
    body = []
    for name, row in rows.items():
        keys = ("ok", "limit", "compared", "in", "steps", "smallest", "first_loss", "last_loss")
        errors = ", ".join(f"{key} {value:.2g}" for key, value in row.items() if key not in keys)
        body.append((name, errors, str(row.get("limit", "")), "yes" if row["ok"] else "**no**"))
    return _markdown(("what", "error", "limit", "met"), body)


def _attention(rows: Rows, _: float | None) -> list[str]:
    body = [
        (
            name,
            f"{row['forward_ms']:.2f}",
            f"{row['forward_backward_ms']:.2f}",
            f"{row['temporary_gb']:.2f}",
        )
        for name, row in rows.items()
    ]
    return _markdown(("attention", "forward, ms", "with backward, ms", "temporaries, GB"), body)


def _step(rows: Rows, peak: float | None) -> list[str]:
    body = []
    for name, row in rows.items():
        if "tflops" not in row:
            continue
        share = f"{row['tflops'] / peak:.1%}" if peak else ""
        nominal = f"{row['nominal_share']:.1%}" if row["nominal_share"] else ""
        # FLOPs are those of the whole step, so a share is wrong if a part is left out.
        whole = not any(word in name for word in (", no ", "forward only"))
        base = _base(rows, name)
        body.append(
            (
                name if row.get("finite", True) else f"{name} (**not finite**)",
                str(row["sequences"]),
                f"{row['ms']:.2f}",
                f"{row['ms'] / base['ms']:.3f}" if base else "",
                f"{row['tokens_per_second']:,.0f}",
                share if whole else "",
                nominal if whole else "",
                f"{row['memory_gb']:.1f}",
                f"{row['compile_seconds']:.1f}",
            )
        )
    header = (
        "step",
        "sequences",
        "ms",
        "of the whole step",
        "tokens/s",
        "of the measured peak",
        "of the nominal peak",
        "memory, GB",
        "compiling, s",
    )
    lines = _markdown(header, body)
    probes = [
        f"{name}: {row['ms']:.2f} ms" for name, row in rows.items() if name.startswith("probe")
    ]
    return [*lines, "", "; ".join(probes)] if probes else lines


def _base(rows: Rows, name: str) -> dict[str, Any] | None:
    """The row of the whole step with this backend's defaults and as many sequences."""
    whole = name.partition(",")[0]
    for candidate in (whole, f"{whole}, batch x 0.25"):
        if candidate in rows and rows[candidate]["sequences"] == rows[name]["sequences"]:
            return rows[candidate]
    return None


def _peers(rows: Rows, _: float | None) -> list[str]:
    body = [
        (
            name,
            str(row["sequences"]),
            f"{row['ms']:.1f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['nfllm_layernorm_gelu_ms']:.1f}",
            f"{row['nfllm_layernorm_gelu_is_faster_by']:.2f}",
            f"{row['first_step_seconds']:.0f}",
        )
        for name, row in rows.items()
    ]
    header = (
        "peer",
        "sequences",
        "ms",
        "tokens/s",
        "nfllm LayerNorm GELU, ms",
        "nfllm is so many times as fast",
        "its first step, s",
    )
    return _markdown(header, body)


def _job(rows: Rows, _: float | None) -> list[str]:
    lines = []
    if "prepare" in rows:
        row = rows["prepare"]
        lines.append(f"Preparing the text took {row['seconds']:.0f} s: {row['train']}.\n")
    body = [
        (
            name,
            f"{row['first_step_seconds']:.1f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['tokens_per_second_with_pauses']:,.0f}",
            f"{row['pauses_seconds']:.2f}",
            f"{row['input_wait_share']:.2%}",
            str(row["log_every"]),
            f"{row['evaluation_loss']:.3f}",
        )
        for name, row in rows.items()
        if "steps" in row
    ]
    header = (
        "train.py",
        "first step after, s",
        "tokens/s",
        "with pauses",
        "pauses (a checkpoint), s",
        "waiting for input",
        "steps a line",
        "evaluation loss",
    )
    return lines + _markdown(header, body)


def _paper(rows: Rows, _: float | None) -> list[str]:
    body = [
        (
            name,
            str(row["steps"]),
            f"{row['tokens'] / 1e6:.1f} M",
            f"{row['loss_nats']:.4f}",
            f"{row['perplexity']:.2f}",
            " ".join(f"{nats:.2f}" for nats in row["entropy_by_layer"]),
        )
        for name, row in rows.items()
        if "perplexity" in row
    ]
    header = ("model", "steps", "tokens", "loss, nats", "perplexity", "entropy by layer, nats")
    return _markdown(header, body)


_FORMS = {
    "facts": _facts,
    "numbers": _numbers,
    "attention": _attention,
    "step": _step,
    "peers": _peers,
    "job": _job,
    "paper": _paper,
}
