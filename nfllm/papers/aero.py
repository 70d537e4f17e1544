"""Claims and published numbers of arXiv 2410.13060 and 2501.03489 on softmax-only networks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

from nfllm.config import ModelConfig
from nfllm.experiment.measured import GroupResults
from nfllm.experiment.sections import comparison_sections
from nfllm.papers.entropy_claims import overload_claim
from nfllm.papers.evidence import has_all
from nfllm.papers.loss_claims import loss_claim
from nfllm.papers.numbers import published_numbers
from nfllm.papers.sections import judge_groups, verdict_section
from nfllm.papers.verdicts import Claim
from nfllm.report.cost_sections import cost_sections
from nfllm.report.page import Section
from nfllm.report.reference import Published, Reference
from nfllm.report.runs import BASELINE, ReportedRun


def find_aero(model: ModelConfig, notation: str) -> Published | None:
    """The published perplexity of a GPT-2 of that depth and context, whatever its width."""
    row = f"{model.architecture}_L{model.num_layers}_T{model.context_length}"
    perplexity = published_numbers("aero.json")["perplexity"].get(row, {}).get(notation)
    if perplexity is None or model.final_normalization != "layernorm":
        return None
    return Published(f"GPT-2 of {model.num_layers} layers", perplexity, None, None, None)


AERO_REFERENCE = Reference(
    find=find_aero,
    baseline=BASELINE,
    source=(
        "Published numbers are of GPT-2 of width 768 on CodeParrot or Languini (arXiv 2501.03489); "
        "with another size, corpus or tokenizer only the changes are comparable."
    ),
    histogram_note="",
)


def aero_sections(groups: Sequence[GroupResults], *, conclusive: bool = True) -> Iterator[Section]:
    """Verdicts on the claims, the comparison of all variants, and perplexity against cost.

    Args:
      groups: the groups of the grid; p-values are corrected over the claims of all of them.
      conclusive: whether the runs are long enough for verdicts to mean anything.
    """
    yield verdict_section(
        groups,
        judge_groups([list(aero_claims(group)) for group in groups]),
        "What these runs say, at their scale, about the claims of arXiv 2410.13060 and 2501.03489.",
        conclusive=conclusive,
    )
    yield from comparison_sections(groups)
    yield from cost_sections(_first_seeds(groups))


def _first_seeds(groups: Sequence[GroupResults]) -> list[ReportedRun]:
    """The run of each variant's first seed, labelled by the variant."""
    firsts = [
        (variant, next(iter(runs.values())))
        for group in groups
        for variant, runs in group.variants.items()
    ]
    return [
        dataclasses.replace(first.run, label=variant)
        for variant, first in firsts
        if first.run is not None
    ]


def aero_claims(group: GroupResults) -> Iterator[Claim]:
    """Claims about the regularizer's effect on losses and heads, and the cost of linear MLPs."""
    for text, worse, better in _LOSS_CLAIMS:
        if has_all(group, worse, better):
            yield loss_claim(group, text, worse, better, _published_effect(worse, better))
    for text, regularized in _OVERLOAD_CLAIMS:
        if has_all(group, "sm(t)+scfuffn", regularized) and group.maximum is not None:
            yield overload_claim(group, text, "sm(t)+scfuffn", regularized)


_LOSS_CLAIMS = (
    ("The entropy regularizer lowers perplexity", "sm(t)+scfuffn", "ereg"),
    ("As the released code weighs it, it lowers perplexity", "sm(t)+scfuffn", "ereg_released"),
    ("Temperatures and regularizer together lower perplexity", "sm+scfuffn", "ereg"),
    ("Learned thresholds are better than fixed ones", "ereg_fixed", "ereg"),
    ("Without LayerNorm and GELU, a linear MLP costs perplexity", "sm+scffn", "sm+ln+g"),
)
_OVERLOAD_CLAIMS = (
    ("The regularizer moves heads out of the top quarter", "ereg"),
    ("As the released code weighs it, it moves heads out of the top quarter", "ereg_released"),
)
_NOTATIONS = {
    "sm+ln+g": BASELINE,
    "sm+scffn": "SM+ScFFN",
    "sm+scfuffn": "SM+ScFuFFN",
    "ereg": "EReg(SM(t)+ScFuFFN)",
}


def _published_effect(worse: str, better: str) -> float | None:
    """The published effect, in nats, for GPT-2 with 12 layers at T = 128."""
    row = published_numbers("aero.json")["perplexity"]["gpt2_L12_T128"]
    there, here = (row.get(_NOTATIONS.get(name, "")) for name in (worse, better))
    return math.log(there / here) if there and here else None
