"""The published numbers agree with each other wherever one follows from others."""

import json
import math
from importlib import resources

import numpy as np
import pytest

from nfllm.analysis import causal_entropy_ceiling, weight_decay_curve

PUBLISHED = json.loads(resources.files("nfllm.papers").joinpath("published.json").read_text())
PERPLEXITY = PUBLISHED["perplexity"]["gpt2_T128"]


@pytest.mark.parametrize(("length", "ceiling"), [(128, 3.8782), (256, 4.5596), (512, 5.2462)])
def test_ceilings(length: int, ceiling: float) -> None:
    """The file holds none: they are computed, here once more, one logarithm a query."""
    exact = math.fsum(math.log(n) for n in range(1, length + 1)) / length
    assert causal_entropy_ceiling(length) == pytest.approx(exact, abs=1e-12)
    assert round(exact, 4) == ceiling
    assert "entropy_ceiling_nats" not in PUBLISHED


def test_perplexities_are_exponentials_of_losses() -> None:
    """The authors cut losses off after the third digit: ln 2.688 is 0.9888, and they say 0.988."""
    for name, loss in PUBLISHED["eval_loss"].items():
        if name != "source":
            assert 0 <= math.log(PERPLEXITY[name]) - loss < 1e-3


def test_headline_is_the_change_of_perplexity() -> None:
    change = 100 * (1 - PERPLEXITY["SM+R"] / PERPLEXITY["SM+G"])
    assert PUBLISHED["headline"]["change_pct"] == pytest.approx(change, abs=0.05)


def test_reruns_lie_within_their_published_spread() -> None:
    low, high = PUBLISHED["rerun_spread_pct"]["range"]
    rerun = PUBLISHED["perplexity"]["gpt2_T128_rerun"]
    both = (rerun.keys() & PERPLEXITY.keys()) - {"source"}
    spreads = [100 * (rerun[name] / PERPLEXITY[name] - 1) for name in both]
    assert min(spreads) == pytest.approx(low, abs=0.05)
    assert max(spreads) == pytest.approx(high, abs=0.05)


def test_histograms_and_heatmaps_are_of_all_heads() -> None:
    recipe = PUBLISHED["recipe"]["model"]
    for name, shares in PUBLISHED["head_entropy_histogram_pct"].items():
        if name != "about":
            assert sum(shares) == pytest.approx(100, abs=1)
            heatmap = np.asarray(PUBLISHED["head_entropy_nats"][name])
            assert heatmap.shape == (recipe["layers"], recipe["heads"])
            assert (heatmap >= 0).all()
            assert (heatmap <= causal_entropy_ceiling(recipe["context"])).all()


def test_recipe_adds_up() -> None:
    """Chunks times tokens, chunks over the batch, and what weight decay alone does to a slope."""
    recipe, chunks = PUBLISHED["recipe"], 16.7e6
    assert recipe["train_chunks"] == "16.7M of 128 tokens = 2.1B tokens"
    assert round(chunks * recipe["model"]["context"] / 1e9, 1) == 2.1
    steps = chunks / recipe["micro_batch"] / recipe["gradient_accumulation"]
    assert recipe["optimizer_steps"] == "about 32600"
    assert steps == pytest.approx(32600, rel=0.003)
    assert "about 0.196" in PUBLISHED["learnable_slope"]["confound"]
    warmup, count = np.arange(1630) / 1630, np.arange(32600 - 1630)
    rates = np.concatenate([1e-3 * warmup, 1e-7 + (1e-3 - 1e-7) * (1 - count / len(count))])
    assert float(weight_decay_curve(1.0, rates, 0.1)[-1]) == pytest.approx(0.196, abs=5e-4)
