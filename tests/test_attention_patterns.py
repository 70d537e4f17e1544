"""Where attention goes, and how far logits spread: hand-computed cases."""

import math

import jax
import numpy as np
import pytest

from nfllm import analysis


def uniform_causal(length: int) -> np.ndarray:
    return np.tri(length) / np.arange(1, length + 1)[:, None]


def test_causal_masks() -> None:
    np.testing.assert_array_equal(analysis.causal_mask(3), np.tri(3))
    np.testing.assert_array_equal(analysis.causal_mask(2, 4), [[1, 1, 1, 0], [1, 1, 1, 1]])
    assert analysis.visible_keys(3).tolist() == [1, 2, 3]
    assert analysis.visible_keys(2, 4).tolist() == [3, 4]


def test_a_head_on_the_first_key_is_a_sink() -> None:
    sink = np.zeros((5, 5))
    sink[:, 0] = 1
    probs = np.stack([sink, np.eye(5), uniform_causal(5)])
    expected = [1, 0, np.mean([1 / 2, 1 / 3, 1 / 4, 1 / 5])]
    np.testing.assert_allclose(analysis.sink_score(probs), expected, atol=1e-6)


def test_previous_token_score() -> None:
    previous = np.eye(5, k=-1)
    previous[0, 0] = 1
    probs = np.stack([previous, np.eye(5), uniform_causal(5)])
    expected = [1, 0, np.mean([1 / 2, 1 / 3, 1 / 4, 1 / 5])]
    np.testing.assert_allclose(analysis.previous_token_score(probs), expected, atol=1e-6)


def test_mass_on_the_last_keys() -> None:
    probs = np.stack([np.eye(5), np.eye(5, k=-2) + np.diag([1, 1, 0, 0, 0]), uniform_causal(5)])
    expected = [1, 0, np.mean([2 / 3, 2 / 4, 2 / 5])]
    np.testing.assert_allclose(analysis.last_keys_mass(probs, 2), expected, atol=1e-6)
    assert np.isnan(analysis.last_keys_mass(probs, 5)).all()
    with pytest.raises(ValueError, match="num_keys must be at least 1, got 0"):
        analysis.last_keys_mass(probs, 0)


def test_queries_are_aligned_to_the_last_key() -> None:
    """Two queries behind a cache of three keys are the last two rows of the full map."""
    full = uniform_causal(5)[None]
    cached = full[:, 3:]
    np.testing.assert_allclose(analysis.sink_score(cached), [np.mean([1 / 4, 1 / 5])], atol=1e-6)
    np.testing.assert_allclose(
        analysis.previous_token_score(cached), [np.mean([1 / 4, 1 / 5])], atol=1e-6
    )
    np.testing.assert_allclose(
        analysis.last_keys_mass(cached, 2), [np.mean([2 / 4, 2 / 5])], atol=1e-6
    )
    with pytest.raises(ValueError, match=r"as many keys S as queries T, got \(1, 5, 2\)"):
        analysis.sink_score(np.swapaxes(cached, 1, 2))


def test_induction_score() -> None:
    """Tokens A B C A B: the query A at 3 should look at B at 1, the query B at 4 at C at 2."""
    tokens_BT = np.array([[7, 8, 9, 7, 8], [1, 2, 3, 4, 5]])
    perfect = np.eye(5)
    perfect[3], perfect[4] = np.eye(5)[1], np.eye(5)[2]
    half = np.eye(5)
    half[3] = np.eye(5)[1]
    probs_BHTS = np.stack([np.stack([perfect, half, uniform_causal(5)])] * 2)
    score_BH = analysis.induction_score(probs_BHTS, tokens_BT)
    np.testing.assert_allclose(score_BH[0], [1, 0.5, np.mean([1 / 4, 1 / 5])], atol=1e-6)
    assert np.isnan(score_BH[1]).all()
    stacked = analysis.induction_score(np.stack([probs_BHTS] * 2), tokens_BT)
    np.testing.assert_array_equal(stacked, np.stack([score_BH] * 2))


def test_induction_counts_every_earlier_occurrence() -> None:
    tokens_BT = np.array([[7, 7, 7, 7]])
    score = analysis.induction_score(uniform_causal(4)[None, None], tokens_BT)
    assert float(score[0, 0]) == pytest.approx(np.mean([1 / 2, 2 / 3, 3 / 4]), abs=1e-6)


def test_induction_wants_tokens_of_the_same_length() -> None:
    with pytest.raises(ValueError, match=r"got \(1, 2, 4, 4\) and \(1, 5\)"):
        analysis.induction_score(np.stack([uniform_causal(4)] * 2)[None], np.zeros((1, 5), int))


def test_logit_spread_by_hand() -> None:
    logits = np.array([[[9.0, 0.0, 0.0], [1.0, 3.0, 0.0], [0.0, 3.0, 6.0]]])
    expected = np.mean([1.0, math.sqrt(6.0)])
    hidden = np.where(np.tri(3, dtype=bool), logits, -np.inf)
    lowest = np.where(np.tri(3, dtype=bool), logits, np.finfo(np.float32).min).astype(np.float32)
    np.testing.assert_allclose(analysis.logit_spread(logits, causal=True), [expected], atol=1e-6)
    np.testing.assert_allclose(
        analysis.logit_spread(logits, mask=np.tri(3, dtype=bool)), [expected], atol=1e-6
    )
    np.testing.assert_allclose(analysis.logit_spread(hidden), [expected], atol=1e-6)
    np.testing.assert_allclose(analysis.logit_spread(lowest), [expected], atol=1e-6)


def test_logit_spread_does_not_depend_on_a_shift_and_keeps_nan() -> None:
    logits = np.random.default_rng(0).normal(size=(2, 6, 6)).astype(np.float32)
    spread = analysis.logit_spread(logits)
    np.testing.assert_allclose(spread, logits.std(-1).mean(-1), atol=1e-6)
    np.testing.assert_allclose(analysis.logit_spread(logits + 100), spread, atol=1e-5)
    logits[0, 3, 1] = np.nan
    assert np.isnan(analysis.logit_spread(logits, causal=True)).tolist() == [True, False]


def test_gradient_of_logit_spread_is_finite_for_equal_logits() -> None:
    gradient = jax.grad(lambda x: analysis.logit_spread(x, causal=True).sum())(np.ones((1, 4, 4)))
    assert np.isfinite(gradient).all()


def test_entropy_by_temperature() -> None:
    logits = np.random.default_rng(0).normal(size=(2, 5, 5)).astype(np.float32)
    entropy = analysis.entropy_by_temperature(logits, [1.0, 0.5, 1e6], causal=True)
    plain = analysis.attention_entropy_from_logits(logits, causal=True)
    sharper = analysis.attention_entropy_from_logits(2 * logits, causal=True)
    uniform = np.broadcast_to(np.log(np.arange(1, 6)), (2, 5))
    np.testing.assert_allclose(entropy, np.stack([plain, sharper, uniform]), atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_masked_logits_stay_masked_at_any_temperature(dtype: type) -> None:
    lowest = np.finfo(dtype).min
    logits = np.where(np.tri(5, dtype=bool), 0, lowest).astype(dtype)[None]
    entropy = analysis.entropy_by_temperature(logits, [0.1, 100.0, 1e5])
    expected = np.broadcast_to(np.log(np.arange(1, 6)), (3, 1, 5))
    np.testing.assert_allclose(entropy, expected, atol=1e-6)


def test_temperatures_are_positive() -> None:
    with pytest.raises(ValueError, match="temperatures must be positive"):
        analysis.entropy_by_temperature(np.zeros((1, 2, 2)), [1.0, 0.0])
