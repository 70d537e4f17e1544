"""Statistics of ten million entries against float64: float32 must not add them up one by one."""

import numpy as np
import pytest

from nfllm import analysis
from nfllm.analysis import ClassResponses, Comoments, Covariance, Histogram, Moments, UnitActivity

pytestmark = pytest.mark.slow

SIZE = 10**7


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).normal(3, 1, SIZE).astype(np.float32)


def test_moments(x: np.ndarray) -> None:
    state, exact = Moments.of(x, axis=0), np.float64(x)
    assert float(state.size) == SIZE
    assert float(state.mean) == pytest.approx(exact.mean(), rel=1e-6)
    assert float(state.variance()) == pytest.approx(exact.var(), rel=1e-6)
    assert float(analysis.rms(x, keep=0)) == pytest.approx((exact**2).mean() ** 0.5, rel=1e-6)


def test_linear_fit(x: np.ndarray) -> None:
    y = np.abs(x)
    exact_x, exact_y = np.float64(x), np.float64(y)
    (xx, xy), (_, yy) = np.cov(exact_x, exact_y)
    fit = Comoments.of(x, y, axis=0).linear_fit()
    assert float(fit.slope) == pytest.approx(xy / xx, rel=1e-6)
    assert float(fit.intercept) == pytest.approx(
        exact_y.mean() - xy / xx * exact_x.mean(), abs=1e-6
    )
    assert float(fit.r_squared) == pytest.approx(xy**2 / xx / yy, rel=1e-6)


@pytest.mark.parametrize("width", [1, 2, 40])
def test_covariance(x: np.ndarray, width: int) -> None:
    rows = x[: SIZE // width * width].reshape(-1, width)
    exact = np.cov(rows, rowvar=False, bias=True, dtype=np.float64)
    covariance = np.asarray(Covariance.of(rows, keep=0).covariance())
    np.testing.assert_allclose(covariance, exact.reshape(width, width), atol=5e-6)


def test_counts(x: np.ndarray) -> None:
    histogram = Histogram.of(x, np.arange(-4.0, 10.0))
    counts = [histogram.counts.sum(), histogram.below, histogram.above, histogram.nan]
    assert sum(map(int, counts)) == SIZE
    activity = UnitActivity.of(x[None, :, None], np.maximum(x, 0)[None, :, None])
    assert float(activity.frequency()[0, 0]) == pytest.approx((x > 0).mean(), rel=1e-6)
    assert float(activity.sparsity()[0]) == pytest.approx((x <= 0).mean(), rel=1e-6)


def test_equal_responses_are_not_selective() -> None:
    """Of each class, however few or many tokens it has."""
    classes = np.repeat([0, 1, 2, 3], [3, 70, 5000, SIZE - 5073])[::-1].copy()
    responses = ClassResponses.of(np.full((1, SIZE, 1), 0.1), classes, 4)
    exact = np.bincount(classes) * np.float64(np.float32(0.1))
    np.testing.assert_allclose(responses.total[0, :, 0], exact, rtol=2e-6)
    np.testing.assert_allclose(responses.intra_class_selectivity(), 0, atol=5e-6)
    np.testing.assert_allclose(responses.specialization(), 0, atol=5e-6)


def test_sums_by_class_of_many_and_of_few_tokens() -> None:
    rng = np.random.default_rng(1)
    for num_tokens, num_classes in ((1, 3), (64, 1), (65, 200), (5000, 7), (5000, 6000)):
        post = rng.normal(size=(2, num_tokens, 3))
        classes = rng.integers(-1, num_classes + 1, num_tokens)
        total = ClassResponses.of(post, classes, num_classes).total
        exact = np.zeros((2, num_classes, 3))
        for c in range(num_classes):
            exact[:, c] = np.abs(post[:, classes == c]).sum(1)
        np.testing.assert_allclose(total, exact, rtol=1e-5, atol=1e-6)


def test_the_type_of_the_classes_need_not_hold_their_number() -> None:
    """256 classes wrap to 0 in uint8, and 300 in int8, where sums go in groups."""
    post = np.ones((1, 300, 1), np.float32)
    classes = np.arange(300) % 100
    exact = np.bincount(classes, minlength=300)
    for dtype, num_classes in ((np.uint8, 256), (np.int8, 300), (np.int32, 256)):
        total = ClassResponses.of(post, classes.astype(dtype), num_classes).total
        np.testing.assert_array_equal(total[0, :, 0], exact[:num_classes])
