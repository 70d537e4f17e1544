"""The sections that load checkpoints: how much each head matters, and several steps of a run.

The rest of a report reads what a run wrote while it trained. These sections run its checkpoints on
its validation split, and are made only on request.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath

import nfllm
from nfllm.analysis import Interval, causal_entropy_ceiling
from nfllm.config import IGNORED_LABEL
from nfllm.data.batches import Batch
from nfllm.report.attention import entropy_by_position_figure
from nfllm.report.entropy_sections import heatmaps_block
from nfllm.report.figures import Heatmap
from nfllm.report.importance import importance_figure, importance_panels
from nfllm.report.page import Block, Markup, Pictures, Section
from nfllm.report.tables import Column, Table
from nfllm.rundir import RunError

_WINDOWS = 64
_BATCH_SIZE = 8
_MOST_STEPS = 12
_ONE_WINDOW = (
    "the intervals are over sequences, and its validation split has fewer than two with a target."
)


def importance_sections(paths: Sequence[epath.Path], labels: Sequence[str]) -> Iterator[Section]:
    """How much the loss rises without each head of the newest checkpoint, beside its entropy.

    Raises:
      RunError: a run has no checkpoint that can be read, or its data is missing.
    """
    blocks: list[Block] = []
    for index, (path, label) in enumerate(zip(paths, labels, strict=True)):
        run = nfllm.load_run(path)
        if not run.config.model.has_attention_maps:
            blocks.append(_without_entropy(label, run))
            continue
        batches = _batches(run)
        if sum(np.any(batch.labels[:, 1:] != IGNORED_LABEL, axis=1).sum() for batch in batches) < 2:
            blocks.append(Markup(f"<p><b>{html.escape(label)}</b>: {_ONE_WINDOW}</p>"))
            continue
        found = nfllm.head_importance(run, batches)
        measured = nfllm.analyze(run.model, run.params, batches, ["head_entropy", "query_entropy"])
        entropy_LH = measured["head_entropy"].mean
        ceiling = causal_entropy_ceiling(run.config.model.context_length)
        title = f"{label}, step {run.step:,}"
        whole = importance_figure(found.rise_LH, entropy_LH, ceiling=ceiling, title=title)
        panels = importance_panels(found.rise_LH, entropy_LH, ceiling=ceiling, title=title)
        table = importance_table(found.rise_LH, entropy_LH)
        blocks.append(Pictures(f"head_importance_{index}", "", whole, panels, table=table))
        entropy_LHT = measured["query_entropy"].mean
        positions = entropy_by_position_figure(entropy_LHT, title=title)
        name = f"entropy_by_position_{index}"
        table = position_table(entropy_LHT)
        blocks.append(Pictures(name, "", positions, [positions], table=table))
    yield Section(
        "How much each head matters",
        "Rise of the loss when a head's output is replaced by its mean over all positions, in nats "
        f"per target with its 95% interval, over {_WINDOWS} windows of the validation split, and "
        "the head's entropy there. The dashed line is the causal ceiling. The second figure shows "
        "the entropy of each layer by query position; its dashed line is the maximum there.",
        blocks,
    )


def step_sections(paths: Sequence[epath.Path], labels: Sequence[str]) -> Iterator[Section]:
    """Entropy of every head at the checkpoints that each run has kept.

    Raises:
      RunError: as `importance_sections`.
    """
    blocks: list[Block] = []
    for index, (path, label) in enumerate(zip(paths, labels, strict=True)):
        kept = nfllm.steps(path)
        if not kept:
            raise RunError(f"{path} has no checkpoint; make its report without --steps")
        places = np.linspace(0, len(kept) - 1, min(len(kept), _MOST_STEPS)).round().astype(int)
        batches = None
        heatmaps: list[Heatmap] = []
        unreadable: list[str] = []
        for step in (kept[place] for place in places):
            try:
                run = nfllm.load_run(path, step=step)
            except RunError:
                unreadable.append(f"{step:,}")
                continue
            if not run.config.model.has_attention_maps:
                blocks.append(_without_entropy(label, run))
                break
            batches = batches or _batches(run)
            measured = nfllm.analyze(run.model, run.params, batches, ["head_entropy"])
            ceiling = causal_entropy_ceiling(run.config.model.context_length)
            heatmaps.append(Heatmap(f"step {step:,}", measured["head_entropy"].mean, ceiling))
        name = f"entropy_steps_{index}"
        if len(unreadable) == len(places):
            raise RunError(f"{path} has no checkpoint that can be read")
        lead = f"<b>{html.escape(label)}</b>, {len(heatmaps)} of {len(kept)} checkpoints."
        if unreadable:
            lead += f" Damaged, and left out: {', '.join(unreadable)}."
        if heatmaps:
            blocks.append(heatmaps_block(heatmaps, name, name, lead))
    yield Section(
        "Attention entropy at the kept checkpoints",
        f"Mean over queries and {_WINDOWS} windows of the validation split.",
        blocks,
    )


def importance_table(rise_LH: Interval, entropy_LH: np.ndarray) -> Table:
    """Entropy of every head and the rise of the loss without it, one row each."""
    columns = (
        Column("layer", "d"),
        Column("head", "d"),
        Column("entropy (nats)", ".4f"),
        Column("rise of the loss (nats)", ".4f"),
        Column("95% from", ".4f"),
        Column("95% to", ".4f"),
    )
    bounds = [np.asarray(bound) for bound in rise_LH]
    rows = tuple(
        (layer, head, float(entropy), *(float(bound[layer, head]) for bound in bounds))
        for (layer, head), entropy in np.ndenumerate(entropy_LH)
    )
    return Table(columns, rows)


def position_table(entropy_LHT: np.ndarray) -> Table:
    """The mean entropy over the heads of each layer, one row for each query position."""
    columns = Column("layer", "d"), Column("position", "d"), Column("entropy (nats)", ".4f")
    rows = tuple(
        (layer, position, float(entropy))
        for (layer, position), entropy in np.ndenumerate(entropy_LHT.mean(1))
    )
    return Table(columns, rows)


def _without_entropy(label: str, run: nfllm.Run) -> Markup:
    mixer = run.config.model.mixer
    return Markup(
        f"<p><b>{html.escape(label)}</b>: attention entropy is not defined, since model.mixer="
        f"{mixer!r} has no softmax. nfllm.head_importance can still measure its heads.</p>"
    )


def _batches(run: nfllm.Run) -> list[Batch]:
    return run.validation_batches(_BATCH_SIZE, max_windows=_WINDOWS)
