"""Claims about norms that are taken out in training, beside what arXiv 2507.02559 published."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nfllm.experiment.measured import GroupResults
from nfllm.experiment.sections import comparison_sections
from nfllm.papers.entropy_claims import overload_claim
from nfllm.papers.evidence import has_all
from nfllm.papers.loss_claims import loss_claim
from nfllm.papers.sections import judge_groups, verdict_section
from nfllm.papers.verdicts import Claim
from nfllm.report.page import Section

PUBLISHED_COST = 3.0797 - 3.0126
"""Nats by which GPT-2 small without LayerNorm is above a control trained as long (OpenWebText)."""


def removal_sections(
    groups: Sequence[GroupResults], *, conclusive: bool = True
) -> Iterator[Section]:
    """Verdicts on the claims, and the comparison of all variants.

    Args:
      groups: the groups of the grid.
      conclusive: whether the runs are long enough for verdicts to mean anything.
    """
    yield verdict_section(
        groups,
        judge_groups([list(removal_claims(group)) for group in groups]),
        "The published cost is that of GPT-2 small, fine-tuned after its norms went, against a "
        "control fine-tuned as long with them (arXiv 2507.02559); the other claims are questions "
        "of ours.",
        conclusive=conclusive,
    )
    yield from comparison_sections(groups)


def removal_claims(group: GroupResults) -> Iterator[Claim]:
    """What the removal costs, what it is worth, and whether entropic overload comes with it."""
    kept, removed, never = "layernorm_gelu", "removed_gelu", "norm_free_gelu"
    if not has_all(group, kept, removed, never):
        return
    yield loss_claim(group, "Taking the norms out costs perplexity", removed, kept, PUBLISHED_COST)
    text = "A model whose norms were taken out is better than one that never had any"
    yield loss_claim(group, text, never, removed)
    if group.maximum is None:
        return
    for text, more, less in (
        ("Early heads are more overloaded after the norms went", removed, kept),
        ("Early heads are more overloaded where there never were norms", never, removed),
    ):
        yield overload_claim(group, text, more, less, early=True)
