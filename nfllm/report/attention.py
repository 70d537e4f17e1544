"""What the heads attend to: arrays of one sequence in, a matplotlib Figure out.

Arrays of any model work. Axes as in `nfllm.model.decoder`: T query position, S key position,
H heads, L layers, B sequences.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from nfllm.analysis.entropy import attention_entropy, head_entropy
from nfllm.report.style import (
    FAINT,
    INK,
    PANEL,
    SMALL,
    add_color_bar,
    add_depth_bar,
    attention_colormap,
    depth_colors,
    literal,
    style_axes,
)

if TYPE_CHECKING:
    from nfllm.data.tokenizer import Tokenizer

_MOST_LABELS = 48  # in a panel of one head; more would touch
_MOST_LABELS_IN_GRID = 16
_MOST_CHARACTERS = 12
_TICKS = (0.0, 0.05, 0.25, 0.5, 1.0)
_VISIBLE = str.maketrans({" ": "·", "\n": "↵", "\t": "→", "\r": "␍"})


def token_labels(tokenizer: Tokenizer, ids: Iterable[int]) -> list[str]:
    """The text of each token, with its spaces and line breaks visible, for `attention_figure`.

    Example:
      >>> import nfllm
      >>> run = nfllm.load_run("runs/default")
      >>> labels = token_labels(run.tokenizer, run.tokenizer.encode("def f(x):"))
    """
    return [tokenizer.decode([token]).translate(_VISIBLE) for token in ids]


def attention_figure(probs: Any, tokens: Sequence[str], *, title: str = "") -> Figure:
    """Attention probabilities of a text for one head, or all heads of a layer, one query a row.

    The colour scales with the square root of the probability, so that uniform attention is visible
    beside attention to one key. Above each head is its entropy, the mean over queries. Entries that
    are exactly 0, such as those that a causal mask hides, are left blank.

    Args:
      probs: probabilities of one sequence, `[T, S]` for one head or `[H, T, S]` for a grid:
        `captured.attention_probs[layer, sequence, head]`, or without `head`.
      tokens: a label for each position, as `token_labels` makes them.
      title: written over the figure.

    Returns:
      The figure, which a notebook shows; `figure.savefig(path, dpi=300)` saves it.

    Raises:
      ValueError: `probs` has other axes, the number of labels is not that of positions, or a row of
        `probs` is not a probability distribution.

    Example:
      >>> figure = attention_figure([[1.0, 0.0], [0.3, 0.7]], ["def", "·f"])
      >>> figure.axes[0].get_title(loc="left")
      '0.31 nats'
    """
    probs = np.asarray(probs, np.float32)
    if probs.ndim not in (2, 3) or probs.shape[-2] != probs.shape[-1] or probs.size == 0:
        raise ValueError(
            f"probs: expected [T, T] of one head or [H, T, T] of several, got {list(probs.shape)}; "
            "take one layer and one sequence: captured.attention_probs[layer, 0]"
        )
    if len(tokens) != probs.shape[-1]:
        raise ValueError(
            f"tokens: {len(tokens)} labels for {probs.shape[-1]} positions; give one for each"
        )
    many = probs.ndim == 3
    probs_HTT = probs if many else probs[None]
    entropy_H = np.asarray(head_entropy(attention_entropy(probs_HTT)))
    columns = min(len(probs_HTT), 4)
    rows = math.ceil(len(probs_HTT) / columns)
    length = len(tokens)
    cell = 0.15 if many else 0.19  # inches for a token, beside the room for labels
    side = min(2.6 if many else 8.0, max(1.5, cell * length))
    figure = Figure(
        figsize=((side + 0.2) * columns + 1.9, (side + 0.35) * rows + 1.0), layout="compressed"
    )
    scale = ScalarMappable(PowerNorm(0.5, 0.0, 1.0), attention_colormap())
    all_axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for head, (axes, probs_TT) in enumerate(zip(all_axes, probs_HTT, strict=False)):
        name = f"head {head}, {entropy_H[head]:.2f} nats" if many else f"{entropy_H[head]:.2f} nats"
        hidden = np.ma.masked_where(probs_TT == 0, probs_TT)
        axes.imshow(hidden, norm=scale.norm, cmap=scale.cmap, interpolation="nearest")
        is_left, is_lowest = head % columns == 0, head + columns >= len(probs_HTT)
        style_axes(axes, name, "key" if is_lowest else "", "query" if is_left else "")
        most = _MOST_LABELS_IN_GRID if many else _MOST_LABELS
        _label(axes.xaxis, tokens if is_lowest else [], most, rotation=90)
        _label(axes.yaxis, tokens if is_left else [], most)
    for axes in all_axes[len(probs_HTT) :]:
        axes.remove()
    if title:
        figure.suptitle(literal(title), fontsize=10, color=INK)
    add_color_bar(
        figure, list(all_axes[: len(probs_HTT)]), scale, _TICKS, "attention probability", "{x:g}"
    )
    return figure


def entropy_by_position_figure(entropy: Any, *, title: str = "") -> Figure:
    """Mean entropy of each layer's heads by query position, with the maximum as a dashed line.

    A query at position t sees t + 1 keys, so its entropy is at most log(t + 1) nats: a layer on
    that line attends uniformly at every position.

    Args:
      entropy: in nats, `[L, H, T]` as `nfllm.analyze` gives it for "query_entropy", or
        `[L, B, H, T]` as `nfllm.analysis.attention_entropy` does for captured probabilities; the
        line of a layer is the mean over heads, and over sequences.
      title: written over the figure.

    Raises:
      ValueError: `entropy` has other axes.

    Example:
      >>> import numpy as np
      >>> figure = entropy_by_position_figure(np.zeros((2, 1, 4, 16)))
      >>> len(figure.axes[0].lines)
      3
    """
    entropy = np.asarray(entropy, np.float64)
    if entropy.ndim not in (3, 4) or entropy.size == 0:
        raise ValueError(f"entropy: expected [L, H, T] or [L, B, H, T], got {list(entropy.shape)}")
    entropy_LT = entropy.mean(axis=tuple(range(1, entropy.ndim - 1)))
    layers, length = entropy_LT.shape
    figure = Figure(figsize=(PANEL[0] + 1.0, PANEL[1] + 0.4), layout="constrained")
    axes = figure.add_subplot()
    style_axes(axes, title, "position of the query", "entropy (nats)")
    positions = np.arange(length)
    shades = depth_colors(layers)
    most = np.log(positions + 1)
    axes.plot(positions, most, "--", color=FAINT, linewidth=1.2, label="uniform")
    for layer in range(layers):
        axes.plot(positions, entropy_LT[layer], color=shades[layer], linewidth=1.2)
    axes.margins(x=0.01)
    axes.annotate(
        "most: log(t + 1)",
        (positions[-1], most[-1]),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=SMALL,
        color=INK,
    )
    add_depth_bar(figure, axes, layers)
    return figure


def _label(axis: Axis, tokens: Sequence[str], most: int, **style: Any) -> None:
    """Labels ticks with the tokens' texts if there is room for all, else with positions."""
    if len(tokens) > most:
        axis.set_tick_params(labelsize=SMALL)
        return
    texts = [literal(_clipped(token)) for token in tokens]
    size = 8.0 if len(tokens) <= 32 else 6.5
    axis.set_ticks(range(len(tokens)), texts, fontsize=size, family="monospace", **style)
    axis.set_tick_params(length=0)


def _clipped(token: str) -> str:
    return token if len(token) <= _MOST_CHARACTERS else f"{token[: _MOST_CHARACTERS - 1]}…"
