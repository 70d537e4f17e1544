"""The entropy heatmap as plain text, for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

UNICODE_SHADES = "░▒▓█"
ASCII_SHADES = ".:*#"
_TICK = 4  # heads between two numbers over narrow columns


def entropy_text(
    entropy_LH: np.ndarray | Sequence[Sequence[float]],
    maximum: float,
    *,
    shades: str = UNICODE_SHADES,
    width: int = 80,
) -> str:
    """Draws the entropy of every head, layers as rows and heads as columns.

    Each cell is a shade, one for each quarter of `maximum`, with the value beside it if there is
    room. Heads that do not fit into the width continue in a further block. A head without a finite
    entropy is drawn as `!`.

    Args:
      entropy_LH: `[L, H]` in nats.
      maximum: reference maximum in nats, such as `nfllm.analysis.causal_entropy_ceiling(T)`.
      shades: four characters, from low to high; `ASCII_SHADES` where Unicode cannot be printed.
      width: columns of the terminal.

    Returns:
      The lines, without a line break at the end.

    Raises:
      ValueError: `entropy_LH` is not two-dimensional or is empty, or `maximum` is not positive.

    Example:
      >>> print(entropy_text([[3.8, 0.4]], maximum=3.88))
          H0       H1
      L0  ██ 3.80  ░░ 0.40
      entropy in nats: ░ to 0.97, ▒ to 1.94, ▓ to 2.91, █ to 3.88
    """
    entropy_LH = np.asarray(entropy_LH, np.float64)
    if entropy_LH.ndim != 2 or entropy_LH.size == 0:
        raise ValueError(f"entropy_LH: expected shape [L, H], got {list(entropy_LH.shape)}")
    if not 0 < maximum < math.inf:
        raise ValueError(f"maximum={maximum} must be a positive number of nats")
    layers, heads = entropy_LH.shape
    margin = len(str(layers - 1)) + 3
    room = width - margin - 1
    cell = next((size for size in (9, 6, 3) if size * heads - 1 <= room), 1)
    per_block = heads if cell > 1 else max(_TICK, room // _TICK * _TICK)
    lines = []
    for first in range(0, heads, per_block):
        block_LH = entropy_LH[:, first : first + per_block]
        lines.append(_header(first, block_LH.shape[1], margin, cell))
        for layer in range(layers):
            cells = "".join(_cell(value, maximum, shades, cell) for value in block_LH[layer])
            lines.append(f"{f'L{layer}':<{margin}}{cells}".rstrip())
    bounds = (f"{shades[i]} to {maximum * (i + 1) / 4:.2f}" for i in range(4))
    lines.append(f"entropy in nats: {', '.join(bounds)}")
    missing = int(np.sum(~np.isfinite(entropy_LH)))
    if missing:
        lines.append(f"! not finite: {missing} of {entropy_LH.size} heads")
    return "\n".join(lines)


def _cell(value: float, maximum: float, shades: str, cell: int) -> str:
    """One head in `cell` characters: `██ 3.80  `, `█3.80 `, `██ ` or `█`."""
    finite = math.isfinite(value)
    shade = shades[min(3, max(0, int(4 * value / maximum)))] if finite else "!"
    number = f"{value:.2f}" if finite else "nan"
    shapes = {9: f"{2 * shade} {number}", 6: f"{shade}{number}", 3: 2 * shade, 1: shade}
    return shapes[cell].ljust(cell)


def _header(first: int, heads: int, margin: int, cell: int) -> str:
    """Head numbers over their columns; over every fourth one where columns are narrow."""
    line = ""
    for head in range(0, heads, 1 if cell > 3 else _TICK):
        line = line.ljust(margin + head * cell) + f"H{first + head}"
    return line
