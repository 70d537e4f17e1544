"""The numbers that Jha & Reagen published, found for a run by its architecture and context.

`published.json` names the source of each: arXiv 2410.09637, 2501.03489 and 2603.06922.
"""

from __future__ import annotations

import numpy as np

from nfllm.analysis.heads import OVERLOADED, early_layers
from nfllm.config import ModelConfig
from nfllm.papers.numbers import published_numbers
from nfllm.report.reference import Published, Reference
from nfllm.report.runs import BASELINE

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
    published = published_numbers("published.json")
    perplexity = published["perplexity"][row].get(notation)
    if perplexity is None:
        return None
    shares = heads = early = None
    if row == "gpt2_T128":
        shares = published["head_entropy_histogram_pct"].get(notation)
        heads = published["head_entropy_nats"].get(notation)
    if heads is not None:
        is_overloaded_LH = np.asarray(heads, np.float64) >= OVERLOADED * _MAXIMUM
        early = 100 * float(np.mean(is_overloaded_LH[: early_layers(len(heads))]))
    return Published(
        model=_MODELS[model.architecture],
        perplexity=perplexity if isinstance(perplexity, float) else None,
        head_shares=None if shares is None else np.asarray(shares) / np.sum(shares),
        early_overload=early,
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
