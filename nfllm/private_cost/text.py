"""The cost as text: tables for a terminal, with the source and limits of each number."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from nfllm.private_cost.communication import Communication
from nfllm.private_cost.cost import PrivateCost, seconds_at_least


def cost_as_text(cost: PrivateCost) -> str:
    """Tables of operations, primitives and communication, with their sources."""
    return "\n\n".join(
        (_operation_table(cost), _primitive_table(cost), _communication_table(cost.communication))
    )


def least_time_as_text(
    cost: PrivateCost, *, bits_per_second: float, round_trip_seconds: float, num_rounds: int
) -> str:
    """A line with the lower bound on the time, in seconds.

    Raises:
      ConfigError: a number is out of range.
    """
    num_bytes = cost.communication.total_bytes
    seconds = seconds_at_least(
        0.0 if num_bytes is None else num_bytes,
        bits_per_second=bits_per_second,
        round_trip_seconds=round_trip_seconds,
        num_rounds=num_rounds,
    )
    trips = f"round trips: {num_rounds:,} of {1e3 * round_trip_seconds:g} ms"
    if num_bytes is None:
        return f"time: at least {seconds:,.1f} s; {trips}; the bytes are not known"
    return (
        f"time: at least {seconds:,.1f} s; {num_bytes / 1e9:.2f} GB at {bits_per_second / 1e6:g} "
        f"Mbit/s; {trips}; computation comes on top"
    )


def _operation_table(cost: PrivateCost) -> str:
    rows = [
        (o.name, _count(o.rows), _count(o.width), _count(o.elements), _count(o.flops))
        for o in cost.operations
    ]
    rows.append(("total", "", "", "", _count(cost.flops)))
    return "\n".join(
        (
            f"One forward pass of {cost.num_tokens:,} tokens, counted, attention maps as squares",
            _aligned(("operation", "rows", "of", "elements", "FLOPs"), rows),
            "FLOPs as the tables of arXiv 2501.03489 count them: MLP "
            f"{cost.published_mlp_flops / 1e9:.3g}B, attention "
            f"{cost.published_attention_flops / 1e9:.3g}B",
        )
    )


def _primitive_table(cost: PrivateCost) -> str:
    total = dataclasses.asdict(cost.total)
    used = [name for name, count in total.items() if count]
    rows = [
        (o.name, *(_count(getattr(o.primitives, name)) for name in used))
        for o in cost.operations
        if o.primitives is not None and any(dataclasses.asdict(o.primitives).values())
    ]
    rows.append(("total", *(_count(total[name]) for name in used)))
    lines = [
        "Primitive operations on secret values, by PUMA's protocols (arXiv 2307.12533), counted",
        _aligned(("operation", *(name.replace("_", " ") for name in used)), rows),
    ]
    if cost.without_protocol:
        lines.append(f"not counted, since no protocol is known: {', '.join(cost.without_protocol)}")
    return "\n".join(lines)


def _communication_table(found: Communication) -> str:
    title = "Communication of two parties, by a fit to 27 published rows, not by derivation"
    total = found.total_bytes
    rows = [
        (
            term.name,
            _count(term.count),
            f"{term.bytes_each:,.1f}",
            f"{term.bytes / 1e9:.3f}",
            "" if total is None else f"{term.bytes / total:.1%}",
            term.basis,
        )
        for term in found.terms
    ]
    lines = [title]
    if rows:
        if total is not None:
            rows.append(("total", "", "", f"{total / 1e9:.3f}", "", found.basis))
        lines.append(_aligned(("term", "times", "bytes each", "GB", "share", "basis"), rows))
    if found.unknown:
        lines.append(f"no total: {'; '.join(found.unknown)}")
    return "\n".join(lines)


def _count(number: int) -> str:
    return f"{number:,}" if number else ""


def _aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, the first to the left and the others to the right."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
