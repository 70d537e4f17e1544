"""Claims about norms that are taken out in training."""

import math
from pathlib import Path

import numpy as np
import pytest
from grid_groups import group_of

from nfllm.papers.removal import removal_claims, removal_sections
from nfllm.papers.verdicts import judge_together

NAMES = ("layernorm_gelu", "removed_gelu", "norm_free_gelu")
CHANGES = {
    "layernorm_gelu": {"model.normalization": "layernorm", "model.activation": "gelu"},
    "removed_gelu": {
        "model.normalization": "frozen_layernorm",
        "model.final_normalization": "frozen_layernorm",
        "model.activation": "gelu",
    },
    "norm_free_gelu": {"model.normalization": "none", "model.activation": "gelu"},
}


def test_each_claim_compares_what_it_says(tmp_path: Path) -> None:
    losses = {
        "layernorm_gelu": [4.00, 4.01, 4.00],
        "removed_gelu": [4.09, 4.10, 4.08],
        "norm_free_gelu": [4.20, 4.21, 4.20],
    }
    sharp_LH = np.full((4, 4), 1.0)
    early_LH = np.where(np.arange(4)[:, None] < 2, 3.8, 1.0) * np.ones((4, 4))
    entropies = {
        "layernorm_gelu": sharp_LH,
        "removed_gelu": sharp_LH,
        "norm_free_gelu": early_LH,
    }
    group = group_of(tmp_path, losses, entropies, extra=CHANGES)
    found = {v.claim: v for v in judge_together(list(removal_claims(group)))}
    costs = found["Removing the norms costs perplexity"]
    assert costs.judgement == "reproduced"
    assert costs.published == f"{100 * math.expm1(3.0797 - 3.0126):+.1f}%"
    assert f"{0.26 / 3:+.4f} nats" in costs.measured
    worth = found["A model whose norms were removed is better than one that never had any"]
    assert worth.judgement == "reproduced"
    assert f"{0.34 / 3:+.4f} nats" in worth.measured
    after = found["Early heads are more overloaded after the norms were removed"]
    assert "0% of the heads to 0%" in after.measured
    never = found["Early heads are more overloaded if there never were norms"]
    assert "100% of the heads to 0%" in never.measured

    (verdicts, *_) = removal_sections([group], conclusive=False)
    assert "too short for verdicts" in verdicts.lead


@pytest.mark.parametrize("missing", NAMES)
def test_a_grid_without_one_of_them_has_no_such_claim(tmp_path: Path, missing: str) -> None:
    losses = {name: [4.0] for name in NAMES if name != missing}
    group = group_of(tmp_path, losses, extra=CHANGES)
    assert not list(removal_claims(group))
