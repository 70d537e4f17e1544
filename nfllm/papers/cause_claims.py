"""Claims about a cause, beyond the paper: that GELU is linear where its inputs are small."""

from __future__ import annotations

from collections.abc import Iterator

from nfllm.experiment.measured import GroupResults
from nfllm.papers.entropy_claims import overload_claim
from nfllm.papers.evidence import has_all
from nfllm.papers.loss_claims import loss_claim
from nfllm.papers.verdicts import Claim

_CONTROLS = (
    ("gelu", "gelu_narrow", "GELU", "A GELU whose linear zone is 16 times narrower"),
    ("relu_zone", "relu", "a ReLU that is x/2 up to 0.5", "ReLU"),
    ("gelu", "gelu_embedding", "GELU", "GELU with embeddings sqrt(width) times as large"),
    ("gelu_embedding", "relu_embedding", "GELU, both with the larger embeddings", "ReLU"),
    (
        "gelu_embedding",
        "ln_gelu_embedding",
        "GELU without it, both with the larger embeddings",
        "LayerNorm with GELU",
    ),
)
"""A variant, the variant that does better if the cause is right, and both in words."""


def cause_claims(group: GroupResults) -> Iterator[Claim]:
    """That each control has the lower loss, and fewer overloaded heads in early layers."""
    for worse, better, bad, good in _CONTROLS:
        if not has_all(group, worse, better):
            continue
        yield loss_claim(group, f"{good} has a lower loss than {bad}", worse, better)
        if group.maximum is not None:
            text = f"{good} has fewer overloaded heads in early layers than {bad}"
            yield overload_claim(group, text, worse, better, early=True)
