"""The numbers that Jha & Reagen published, found for a run by its architecture and context.

`published.json` names the source of each: arXiv 2410.09637, 2501.03489 and 2603.06922.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
from typing import Any

import numpy as np

from nfllm.config import ModelConfig
from nfllm.report.reference import Published, Reference

BASELINE = "SM+LN+G"

_MAXIMUM = 3.866  # nats; the M that gives the published histograms from the published entropies
_ROWS = {
    ("gpt2", 128): "gpt2_T128",
    ("gpt_neox", 128): "pythia70m_T128",
    ("gpt_neox", 256): "pythia70m_T256",
}
_MODELS = {"gpt2": "GPT-2 with 12 layers", "gpt_neox": "Pythia-70M"}


def find_published(model: ModelConfig, notation: str) -> Published | None:
    """What was published for a model like `model`, of any size; None if nothing was.

    Args:
      model: must have the architecture and context length of a published model, and the LayerNorm
        before the head that the authors' code always keeps.
      notation: the paper's name of its normalization and activation, such as `SM+R`.
    """
    row = _ROWS.get((model.architecture, model.context_length))
    if row is None or model.final_normalization != "layernorm" or model.qk_normalization != "none":
        return None
    perplexity = _published()["perplexity"][row].get(notation)
    if perplexity is None:
        return None
    shares = heads = None
    if row == "gpt2_T128":
        shares = _published()["head_entropy_histogram_pct"].get(notation)
        heads = _published()["head_entropy_nats"].get(notation)
    early = None if heads is None else np.asarray(heads[: len(heads) // 2], np.float64)
    return Published(
        model=_MODELS[model.architecture],
        perplexity=perplexity if isinstance(perplexity, float) else None,
        head_shares=None if shares is None else np.asarray(shares) / np.sum(shares),
        early_overload=None if early is None else 100 * float(np.mean(early >= 0.75 * _MAXIMUM)),
        overload=None if shares is None else float(shares[-1]),
    )


REFERENCE = Reference(
    find=find_published,
    baseline=BASELINE,
    source=(
        f"Published numbers are of {' and '.join(_MODELS.values())}, trained on 2.1 B tokens of "
        "CodeParrot (arXiv 2410.09637); with another size, corpus or tokenizer only the changes "
        "are comparable."
    ),
    histogram_note=(
        "The paper defines M in the same way. Published rows refer to their own M of 3.87 nats."
    ),
)


@functools.cache
def _published() -> dict[str, Any]:
    file = importlib.resources.files("nfllm.papers").joinpath("published.json")
    return json.loads(file.read_text("utf-8"))
