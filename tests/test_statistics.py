"""Mergeable states: streaming equals one pass, whatever the split and the order."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfllm import analysis
from nfllm.analysis import Comoments, Histogram, Moments


def split(x: np.ndarray, seed: int) -> list[np.ndarray]:
    """Parts of 1 to 5 rows in a random order; two lengths only, so that little is compiled."""
    rng = np.random.default_rng(seed)
    parts, start = [], 0
    while start < len(x):
        size = min(int(rng.choice([1, 5])), len(x) - start)
        size = size if size == 5 else 1
        parts.append(x[start : start + size])
        start += size
    return [parts[i] for i in rng.permutation(len(parts))]


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1), offset=st.floats(-100, 100), scale=st.sampled_from([0.1, 1, 30])
)
def test_streamed_moments_equal_float64(seed: int, offset: float, scale: float) -> None:
    x = np.random.default_rng(seed).normal(offset, scale, size=(23, 4)).astype(np.float32)
    x64 = x.astype(np.float64)
    parts = [Moments.of(part, axis=0) for part in split(x, seed)]
    on_host = analysis.merge_all(analysis.to_host(part) for part in parts)
    on_device = analysis.merge_all(parts)
    for state in (on_host, on_device):
        np.testing.assert_allclose(state.size, [23] * 4)
        np.testing.assert_allclose(state.mean, x64.mean(0), rtol=1e-6, atol=1e-6 * scale)
        # A mean is stored to 6e-8 of itself, which limits what is known of small deviations from
        # it.
        np.testing.assert_allclose(state.std(), x64.std(0), rtol=1e-6, atol=3e-7 * abs(offset))
        np.testing.assert_array_equal(state.minimum, x.min(0))
        np.testing.assert_array_equal(state.maximum, x.max(0))


def test_long_streams_on_the_host_do_not_drift() -> None:
    """A running float32 mean of 20,000 batches with an offset would be off in the sixth digit."""
    x = np.random.default_rng(0).normal(7, 1, size=(20_000, 2)).astype(np.float32)
    one = np.ones(2)
    state = None
    for row in x.astype(np.float64):
        state = analysis.update(state, Moments(one, row, 0 * one, row, row))
    np.testing.assert_allclose(state.mean, x.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(state.variance(), x.astype(np.float64).var(0), rtol=1e-10)


def test_ten_million_values_in_one_batch() -> None:
    """Added up one by one in float32, they would be off in the fourth digit."""
    x = np.random.default_rng(0).random((1, 10_000_000), np.float32)
    state = jax.jit(lambda x: Moments.of(x, axis=1))(x)
    x64 = x.astype(np.float64)
    np.testing.assert_allclose(state.mean, x64.mean(1), rtol=1e-6)
    np.testing.assert_allclose(state.variance(), x64.var(1), rtol=1e-6)


def test_states_on_the_host_are_double_precision() -> None:
    state = {"counts": np.int32([1]), "moments": Moments.of(np.ones(3), axis=0)}
    on_host = analysis.to_host(state)
    assert on_host["counts"].dtype == np.int64
    merged = on_host["moments"].merge(on_host["moments"])
    assert {type(x) for x in (*on_host["moments"], *merged)} <= {np.ndarray, np.float64}
    assert {x.dtype.name for x in (*on_host["moments"], *merged)} == {"float64"}


def test_moments_of_two_hosts_are_those_of_one() -> None:
    x = np.random.default_rng(0).normal(size=(12, 3, 5)).astype(np.float32)
    whole = Moments.of(x, axis=(0, 2))
    hosts = [Moments.of(x[:5], axis=(0, 2)), Moments.of(x[5:], axis=(0, 2))]
    for merged in (hosts[0].merge(hosts[1]), hosts[1].merge(hosts[0])):
        for a, b in zip(merged, whole, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_where_leaves_entries_out_nan_included() -> None:
    x = np.array([[1.0, np.nan, 3.0], [np.nan, np.nan, np.nan], [4.0, 5.0, np.nan]])
    state = Moments.of(x, axis=1, where=[[1, 0, 1], [0, 0, 0], [1, 1, 1]])
    np.testing.assert_allclose(state.size, [2, 0, 3])
    np.testing.assert_allclose(state.mean, [2, 0, np.nan])
    np.testing.assert_allclose(state.variance(), [1, np.nan, np.nan])
    np.testing.assert_allclose(state.minimum, [1, np.inf, np.nan])
    merged = state.merge(Moments.of(np.array([[7.0], [8.0], [9.0]]), axis=1))
    np.testing.assert_allclose(merged.mean, [11 / 3, 8, np.nan], rtol=1e-6)


@pytest.mark.parametrize("axis", [2, -3, (0, 2)])
def test_an_axis_that_is_not_there(axis: int | tuple[int, ...]) -> None:
    x = np.arange(6.0).reshape(2, 3)
    with pytest.raises(ValueError, match=r"axis=.*: shape \(2, 3\) has 2 axes"):
        Moments.of(x, axis=axis)
    with pytest.raises(ValueError, match=r"axis=.*: shape \(2, 3\) has 2 axes"):
        Comoments.of(x, x, axis=axis)


def test_nothing_merges_with_anything() -> None:
    nothing = Moments.of([1.0], axis=0, where=[False])
    for state in (Moments.of([np.inf, 1.0], axis=0), Moments.of([2.0, 4.0], axis=0), nothing):
        for merged in (state.merge(nothing), nothing.merge(state)):
            assert merged.mean == state.mean
            assert merged.size == state.size


def test_sample_variance_and_standard_error() -> None:
    state = Moments.of(np.array([1.0, 2.0, 3.0, 6.0]), axis=0)
    assert float(state.variance(ddof=1)) == pytest.approx(14 / 3, rel=1e-6)
    assert float(state.standard_error()) == pytest.approx((14 / 12) ** 0.5, rel=1e-6)
    assert np.isnan(Moments.of(np.array([1.0]), axis=0).standard_error())


def test_states_cross_jit_and_merge_under_it() -> None:
    x = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)

    @jax.jit
    def both(x: jax.Array) -> Moments:
        return Moments.of(x[0], axis=0).merge(Moments.of(x[1], axis=0))

    assert float(both(x).variance()) == pytest.approx(x.var(), rel=1e-6)


def test_merging_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no state to merge"):
        analysis.merge_all([])


def test_streamed_linear_fit_equals_polyfit() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(3, 1, size=(3, 40))
    y = 2 * x - 1 + rng.normal(size=x.shape)
    merged = analysis.merge_all(
        analysis.to_host(Comoments.of(x[i], y[i], axis=0)) for i in range(3)
    )
    slope, intercept = np.polyfit(x.ravel(), y.ravel(), 1)
    fit = merged.linear_fit()
    assert float(fit.slope) == pytest.approx(slope, rel=1e-6)
    assert float(fit.intercept) == pytest.approx(intercept, rel=1e-5)
    assert float(fit.r_squared) == pytest.approx(np.corrcoef(x.ravel(), y.ravel())[0, 1] ** 2)
    with pytest.raises(ValueError, match=r"x and y: .*\(3, 40\) and \(40,\)"):
        Comoments.of(x, y[0], axis=0)


def test_histogram_equals_numpy_and_loses_nothing() -> None:
    rng = np.random.default_rng(0)
    x = np.round(rng.normal(size=(2, 500)), 1).astype(np.float32)
    edges = np.array([-1.0, -0.5, 0.0, 0.5, 1.0], np.float32)
    x[0, :3] = np.nan
    x[1, 0] = np.inf
    state = Histogram.of(x, edges, keep=1)
    for row in range(2):
        expected, _ = np.histogram(x[row][np.isfinite(x[row])], edges)
        np.testing.assert_array_equal(state.counts[row], expected)
    np.testing.assert_array_equal(state.nan, [3, 0])
    np.testing.assert_array_equal(state.below, (x < -1).sum(1))
    np.testing.assert_array_equal(state.above, (x > 1).sum(1))
    total = state.counts.sum(-1) + state.below + state.above + state.nan
    np.testing.assert_array_equal(total, [500, 500])


def test_a_histogram_keeps_no_more_axes_than_there_are() -> None:
    with pytest.raises(ValueError, match=r"keep=3 leading axes: shape \(2, 3\) has 2"):
        Histogram.of(np.zeros((2, 3)), [0.0, 1.0], keep=3)


def test_histograms_merge_if_their_edges_agree() -> None:
    x = np.random.default_rng(0).normal(size=30)
    edges = [-1.0, 0.0, 1.0]
    whole = Histogram.of(x, edges)
    merged = Histogram.of(x[:11], edges).merge(Histogram.of(x[11:], edges))
    for a, b in zip(merged, whole, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="different edges"):
        whole.merge(Histogram.of(x, [-1.0, 0.0, 2.0]))
    with pytest.raises(ValueError, match="at least two ascending numbers"):
        Histogram.of(x, [1.0, 0.0])


def test_a_state_is_shown_in_a_line(capsys):
    x = np.ones((512, 6, 4))
    moments = Moments.of(x, axis=0)
    shapes = "size=f32[6,4], mean=f32[6,4], m2=f32[6,4], minimum=f32[6,4], maximum=f32[6,4]"
    assert repr(moments) == f"Moments({shapes})"
    assert repr(analysis.to_host(Moments.of([1.0, 2.0], axis=0))) == (
        "Moments(size=2, mean=1.5, m2=0.5, minimum=1, maximum=2)"
    )
    jax.jit(lambda x: print(Moments.of(x, axis=0)))(x)  # where numbers have no value
    assert capsys.readouterr().out == f"Moments({shapes})\n"
    assert len(repr(Comoments.of(x, x, axis=0))) < 110
