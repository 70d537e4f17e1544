"""Verdicts on groups of runs whose numbers are chosen."""

import dataclasses
import json
import math

import numpy as np
import pytest
from synthetic_runs import write_run

from nfllm.config import get_config
from nfllm.experiment import Experiment, Group, Variant
from nfllm.experiment.cause import CAUSE_FILE, Cause
from nfllm.experiment.grid import expand
from nfllm.experiment.measured import read_group
from nfllm.experiment.outcome import Outcome
from nfllm.experiment.tables import cause_table, entropy_table, perplexity_table
from nfllm.experiment.verdicts import LOSS_TOLERANCE, judge, judge_claims

NORMALIZATION = {"sm": "none", "sm+ln": "layernorm"}
ACTIVATION = {"g": "gelu", "r": "relu"}


@pytest.mark.parametrize(
    ("effects", "tolerance", "expected"),
    [
        # One seed: the tolerance stands for the interval.
        ([0.03], 0.02, "reproduced"),
        ([0.015], 0.02, "undecided at this scale"),
        ([-0.01], 0.02, "not reproduced"),
        ([-0.03], 0.02, "not reproduced"),
        # Three seeds, t = 4.303 at 2 degrees: mean 0.1, s 0.01, half-width 0.0248.
        ([0.09, 0.10, 0.11], 0.02, "reproduced"),
        # The same spread around 0.022 reaches below zero: half-width 0.0248 > 0.022.
        ([0.012, 0.022, 0.032], 0.02, "undecided at this scale"),
        # Surely positive, but smaller than the tolerance.
        ([0.0090, 0.0100, 0.0110], 0.02, "not reproduced"),
        ([-0.11, -0.10, -0.09], 0.02, "not reproduced"),
        ([], 0.02, "not measured"),
    ],
)
def test_judgement(effects, tolerance, expected):
    assert judge(effects, tolerance)[0] == expected


def test_interval_is_students():
    _, mean, low, high = judge([0.09, 0.10, 0.11], 0.02)
    half = 4.302653 * 0.01 / math.sqrt(3)
    assert (mean, low, high) == pytest.approx((0.10, 0.10 - half, 0.10 + half), abs=1e-6)


def group_of(tmp_path, losses, entropies=None, causes=None, extra=None, outcomes=None):
    """A group with the given losses `{variant: [of each seed]}`, read back from run directories."""
    variants = {}
    for name, values in losses.items():
        changes = dict((extra or {}).get(name, {}))
        if not changes:
            block, _, letter = name.rpartition("+")
            changes = {
                "model.normalization": NORMALIZATION[block],
                "model.activation": ACTIVATION[letter],
            }
        variants[name] = Variant(changes, seeds=tuple(range(len(values))))
    experiment = Experiment("", {"main": Group("Six", get_config(), variants)})
    entries = expand(experiment)
    found = {}
    for entry in entries:
        run = tmp_path / entry.name
        changes = {**variants[entry.variant].changes, "training.seed": entry.seed}
        entropy = (entropies or {}).get(entry.variant)
        entropy_LH = np.full((4, 4), 3.0) if entropy is None else entropy
        write_run(run, changes, entropy_LH, losses[entry.variant][entry.seed])
        if causes:
            (run / CAUSE_FILE).write_text(causes[entry.variant])
        found[entry.name] = (outcomes or {}).get(entry.name, Outcome("finished"))
    return read_group("main", "Six", entries, found, tmp_path)


def verdicts(group):
    return {verdict.claim: verdict for verdict in judge_claims(group)}


FOUR = {
    "sm+g": [4.10, 4.13, 4.11],
    "sm+r": [4.00, 4.02, 4.02],
    "sm+ln+g": [3.90, 3.91, 3.92],
    "sm+ln+r": [3.91, 3.90, 3.92],
}


def test_perplexity_claims(tmp_path):
    group = group_of(tmp_path, FOUR)
    found = verdicts(group)
    relu = found["Without LayerNorm, ReLU is better than GELU"]
    # Pairs 0.10, 0.11, 0.09: mean 0.1 nats, 100 (e^0.1 - 1) = 10.5%.
    assert relu.judgement == "reproduced"
    assert "+10.5%" in relu.measured
    assert "+0.1000 nats" in relu.measured
    assert "over 3 seeds" in relu.measured
    assert relu.published == "+8.9%"  # 3.197 / 2.936
    # Pairs 0.01, -0.01, 0: mean 0, half-width 0.0248, which reaches above the tolerance.
    assert found["With LayerNorm, GELU is better than ReLU"].judgement == "undecided at this scale"
    assert found["Taking out LayerNorm costs perplexity, with GELU"].judgement == "reproduced"
    rows = {row[0]: row for row in perplexity_table(group).rows}
    assert rows["sm+g"][1:3] == (3, pytest.approx(4.1133333))
    # Mean of 0.20, 0.22, 0.19 against the baseline of the same seeds.
    assert rows["sm+g"][6] == pytest.approx(100 * math.expm1(0.61 / 3))
    assert rows["sm+ln+g"][6] is None
    assert rows["sm+g"][7:9] == (3.197, pytest.approx(18.94, abs=0.01))


def test_a_seed_without_its_pair_does_not_count(tmp_path):
    outcomes = {"main/sm+g/seed2": Outcome("failed", "killed")}
    group = group_of(tmp_path, FOUR, outcomes=outcomes)
    assert "over 2 seeds" in verdicts(group)["Without LayerNorm, ReLU is better than GELU"].measured
    rows = {row[0]: row for row in perplexity_table(group).rows}
    assert rows["sm+g"][1] == 2
    assert rows["sm+g"][-1] == "failed (seed 2)"


def test_entropy_claims_share_one_maximum(tmp_path):
    gelu = np.array([[3.8] * 4, [3.0] * 4, [2.8] * 4, [1.0] * 4])
    relu = np.array([[3.0, 3.0, 2.0, 2.0]] * 4)
    # M = 3.8, so 3/4 M = 2.85: GELU 100% of the early heads, ReLU 50%; 50% each over all layers.
    group = group_of(tmp_path, FOUR, {"sm+g": gelu, "sm+r": relu})
    found = verdicts(group)
    early = found["Early layers of norm-free GELU are overloaded"]
    assert early.judgement == "reproduced"
    assert "100% of the heads" in early.measured
    assert "M = 3.800" in early.measured
    more = found["Early layers of norm-free GELU are more overloaded than ReLU's"]
    assert more.judgement == "reproduced"
    assert "100% of the heads to 50%: +50 points" in more.measured
    assert (early.published, more.published) == ("88%", "88% to 44%")
    overall = found["Over all layers, norm-free GELU is more overloaded"]
    assert overall.judgement == "not reproduced"
    rows = {row[0]: row for row in entropy_table(group).rows}
    assert rows["sm+g"][2:6] == pytest.approx((100, 0, 50, 0))
    assert rows["sm+r"][6] == pytest.approx(100 * 32 / 72)  # published heatmap, 3/4 of 3.866


def cause(early, late, both):
    layers = [0.9, 0.8, 0.7, 0.6]
    return dataclasses.asdict(
        Cause(1000, 4.0, [4.0] * 4, 4 + early, 4 + late, 4 + both, layers, layers, layers, 99)
    )


def test_cause_claims(tmp_path):
    costs = {"sm+g": 0.003, "sm+r": 0.3, "sm+ln+g": 0.8, "sm+ln+r": 0.7}
    causes = {name: json.dumps(cause(early, 0.5, 1.0)) for name, early in costs.items()}
    losses = {**FOUR, "half_linear": [4.15, 4.16, 4.15]}
    extra = {"half_linear": {"model.normalization": "none", "model.activation": "half_identity"}}
    causes["half_linear"] = json.dumps(cause(0, 0, 0))
    group = group_of(tmp_path, losses, causes=causes, extra=extra)
    found = verdicts(group)
    claim = "The GELU of early norm-free layers is a linear map, the ReLU is not"
    assert found[claim].judgement == "reproduced"
    assert "0.0030 in sm+g, 0.3000 in sm+r" in found[claim].measured
    handicap = found["Most of norm-free GELU's handicap is that of a linear MLP"]
    # Shares 0.10/0.15, 0.11/0.14, 0.09/0.13: mean 71.49%.
    assert "GELU loses 71% of what ReLU gains" in handicap.measured
    assert handicap.judgement == "reproduced"
    rows = {row[0]: row for row in cause_table(group).rows}
    assert rows["sm+g"][1:4] == pytest.approx((0.003, 0.5, 1.0))
    assert costs["sm+g"] < LOSS_TOLERANCE < costs["sm+r"]


@pytest.mark.parametrize(
    ("final", "expected"),
    [(0.004, "reproduced"), (0.008, "undecided at this scale"), (-0.2, "not reproduced")],
)
def test_slope_claims(tmp_path, final, expected):
    changes = {
        "model.normalization": "none",
        "model.activation": "learnable_leaky_relu",
        "model.negative_slope": 0.01,
        "optimizer.decay_slopes": True,
    }
    variant = Variant(changes)
    experiment = Experiment("", {"main": Group("", get_config(), {"learned": variant})})
    (entry,) = expand(experiment)
    slopes_NL = np.linspace(0.01, final, 21)[:, None].repeat(4, 1)
    write_run(tmp_path / entry.name, changes, np.ones((4, 4)), 4.0, slopes_NL=slopes_NL)
    group = read_group("main", "", [entry], {entry.name: Outcome("finished")}, tmp_path)
    claim = "Learned slopes go toward zero (a slope a layer, with weight decay on them)"
    assert verdicts(group)[claim].judgement == expected


@pytest.mark.parametrize("probed", [True, False])
def test_a_network_that_does_not_diverge_need_not_be_probed(tmp_path, probed):
    changes = {"model.normalization": "none", "model.activation": "identity"}
    group = group_of(tmp_path, {"sm": [4.0]}, extra={"sm": changes})
    if not probed:
        del group.variants["sm"][0].run.series["logit_max_abs"]
    found = verdicts(group)["The softmax-only network diverges (default type)"]
    assert found.judgement == "not reproduced"
    assert ("; largest |attention logit| ever probed" in found.measured) == probed


def test_divergence_says_where(tmp_path):
    changes = {"model.normalization": "none", "model.activation": "identity"}
    extra = {"sm": changes}
    message = "loss nan at step 9: first seen in the attention logits of layer 1"
    outcomes = {"main/sm/seed0": Outcome("diverged", message)}
    group = group_of(tmp_path, {"sm": [4.0]}, extra=extra, outcomes=outcomes)
    found = verdicts(group)["The softmax-only network diverges (default type)"]
    assert (found.judgement, found.measured) == ("reproduced", message)
    rows = {row[0]: row for row in perplexity_table(group).rows}
    assert rows["sm"][1] == 0
    assert rows["sm"][-1] == "diverged (seed 0)"
