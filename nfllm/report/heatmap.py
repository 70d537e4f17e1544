"""The entropy heatmap as an HTML table whose cells show their value under the pointer."""

from __future__ import annotations

import html
import math

from matplotlib.colors import to_hex

from nfllm.report.figures import Heatmap
from nfllm.report.style import contrast, entropy_colormap, entropy_digits

_SHADES = 64
_MOST_HEADS_WITH_TEXT = 16
_MOST_LAYERS_WITH_TEXT = 32
_MOST_HEADS_WITH_DIGITS = 8  # two behind the point


def heatmap_html(heatmap: Heatmap, limits: tuple[float, float]) -> str:
    """One run's entropies, layers as rows and heads as columns.

    A cell's value in nats is its title, and is shown under the table while the cell is under the
    pointer or selected by the arrow keys. Cells that are large enough also contain it as text.

    Args:
      heatmap: entropies `[L, H]` and their label.
      limits: entropies in nats at both ends of the colour scale.
    """
    layers, heads = heatmap.entropy.shape
    quiet = heads > _MOST_HEADS_WITH_TEXT or layers > _MOST_LAYERS_WITH_TEXT
    digits = entropy_digits(limits) if heads <= _MOST_HEADS_WITH_DIGITS else 1
    ceiling = "" if heatmap.ceiling is None else f", ceiling {heatmap.ceiling:.2f} nats"
    caption = (
        f"<b>{html.escape(heatmap.label)}</b><span>{layers} layers × {heads} heads{ceiling}</span>"
    )
    head = "".join(f"<th scope=col>{_every(index, heads)}</th>" for index in range(heads))
    lines = [
        f"<tr><th scope=row>{_every(layer, layers)}</th>"
        + "".join(
            _cell(layer, head, float(heatmap.entropy[layer, head]), limits, heatmap.ceiling, digits)
            for head in range(heads)
        )
        + "</tr>"
        for layer in range(layers)
    ]
    body = "\n".join(lines)
    return (
        f'<div class="panel heat{" quiet" if quiet else ""}" style="--heads:{heads}">'
        f"<div class=wide><table>\n<caption>{caption}</caption>\n"
        f"<thead><tr><td></td>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>\n"
        "<output>&nbsp;</output></div>"
    )


def scale_html(
    limits: tuple[float, float], observed: float | None, ceiling: float | None = None
) -> str:
    """The colour scale between `limits`, in nats, with a mark at the largest entropy observed.

    If the upper end is the causal `ceiling`, its label says so.
    """
    low, high = limits
    colormap = entropy_colormap()
    stops = ",".join(to_hex(colormap(i / 16)) for i in range(17))
    values = [low + (high - low) * third / 3 for third in range(4)]
    names = [f"{value:.2f}" for value in values]
    if ceiling == high:
        names[-1] = f"ceiling {names[-1]}"
    ticks = "".join(
        f'<span style="left:{100 * third / 3:.1f}%">{name}</span>'
        for third, name in enumerate(names)
    )
    mark = ""
    if observed is not None and low < observed <= high:
        place = 100 * (observed - low) / (high - low)
        mark = f'<i style="left:{place:.2f}%" title="M: {observed:.3f} nats"></i>'
    return (
        f'<div class=scale><div class=bar style="background:linear-gradient(to right,{stops})">'
        f"{mark}</div><div class=ticks>{ticks}</div></div>"
    )


def color_rules() -> str:
    """Style rules of the classes `c0` to `c63`, from the lowest entropy to the highest."""
    colormap = entropy_colormap()
    colors = [colormap((shade + 0.5) / _SHADES) for shade in range(_SHADES)]
    return "".join(
        f".c{shade}{{background:{to_hex(color)};color:{contrast(color)}}}\n"
        for shade, color in enumerate(colors)
    )


def _cell(
    layer: int,
    head: int,
    value: float,
    limits: tuple[float, float],
    ceiling: float | None,
    digits: int,
) -> str:
    first = " tabindex=0" if layer == head == 0 else " tabindex=-1"
    where = f"layer {layer}, head {head}"
    if not math.isfinite(value):
        return f'<td class=bad{first} title="{where}: {value}">×</td>'
    low, high = limits
    place = (value - low) / (high - low) if high > low else 0.0
    shade = min(_SHADES - 1, max(0, int(_SHADES * place)))
    share = "" if ceiling is None or ceiling <= 0 else f", {100 * value / ceiling:.0f}% of ceiling"
    title = f"{where}: {value:.3f} nats{share}"
    return f'<td class=c{shade}{first} title="{title}">{value:.{digits}f}</td>'


def _every(index: int, count: int) -> str:
    """The index, or nothing where there are too many to write each."""
    step = 2 ** max(0, math.ceil(math.log2(count / 16)))
    return str(index) if index % step == 0 else ""
