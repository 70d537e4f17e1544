"""Claims about norms that are removed during training, and what arXiv 2507.02559 published."""

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
"""Loss of GPT-2 small without LayerNorm minus that of a control trained as long, in nats
(OpenWebText)."""


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
        "The published cost is that of GPT-2 small, fine-tuned after its norms were removed, "
        "compared with a control fine-tuned as long with them (arXiv 2507.02559); the other claims "
        "are our own questions.",
        conclusive=conclusive,
    )
    yield from comparison_sections(groups)


def removal_claims(group: GroupResults) -> Iterator[Claim]:
    """Claims about the cost and benefit of removing norms, and whether it causes overload."""
    kept, removed, never = "layernorm_gelu", "removed_gelu", "norm_free_gelu"
    if not has_all(group, kept, removed, never):
        return
    yield loss_claim(group, "Removing the norms costs perplexity", removed, kept, PUBLISHED_COST)
    text = "A model whose norms were removed is better than one that never had any"
    yield loss_claim(group, text, never, removed)
    if group.maximum is None:
        return
    for text, more, less in (
        ("Early heads are more overloaded after the norms were removed", removed, kept),
        ("Early heads are more overloaded if there never were norms", never, removed),
    ):
        yield overload_claim(group, text, more, less, early=True)
