"""Published numbers, to show beside those of runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from nfllm.config import ModelConfig


class Published(NamedTuple):
    """What was published for one model.

    `head_shares` are the fractions of heads in the four quarters of the published M, `[4]`; the
    overload shares are percentages of heads with 3/4 M or more, in the first half of the layers and
    in all layers. Numbers are None if not published, or if the published run diverged.
    """

    model: str
    perplexity: float | None
    head_shares: np.ndarray | None
    early_overload: float | None
    overload: float | None


@dataclasses.dataclass(frozen=True)
class Reference:
    """The numbers of one source, such as a paper.

    Attributes:
      find: returns what was published for a model of a given config and notation
        (`nfllm.report.runs.notation`), or None.
      baseline: notation of the model that published changes refer to.
      source: where the numbers come from, in a sentence.
      histogram_note: what the published quarters of head entropies refer to.
    """

    find: Callable[[ModelConfig, str], Published | None]
    baseline: str
    source: str
    histogram_note: str
