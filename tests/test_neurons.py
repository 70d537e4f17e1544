"""Units, spectra and specialization: hand-computed cases and float64 NumPy."""

import math

import numpy as np
import pytest

from nfllm import analysis
from nfllm.analysis import ClassResponses, Covariance, UnitActivity


def erf_gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def test_gelu_of_small_inputs_is_linear_and_relu_never_is() -> None:
    rng = np.random.default_rng(0)
    pre = np.stack([0.02 * rng.normal(size=(4, 50, 100)), 5 * rng.normal(size=(4, 50, 100))])
    gelu = analysis.activation_moments(pre, erf_gelu(pre)).linear_fit()
    relu = analysis.activation_moments(pre, np.maximum(pre, 0)).linear_fit()
    assert gelu.r_squared[0] > 0.999
    assert gelu.slope[0] == pytest.approx(0.5, abs=1e-3)
    gaussian = 0.25 / (0.5 - 0.5 / math.pi)
    np.testing.assert_allclose(relu.r_squared, [gaussian] * 2, atol=0.01)
    np.testing.assert_allclose(relu.slope, [0.5, 0.5], atol=0.01)


def test_linear_fit_equals_polyfit_in_float64() -> None:
    rng = np.random.default_rng(0)
    pre = rng.normal(size=(3, 2, 9, 16)) + 2
    post = erf_gelu(pre)
    fit = analysis.activation_moments(pre, post).linear_fit()
    for layer in range(3):
        x, y = pre[layer].ravel(), post[layer].ravel()
        slope, intercept = np.polyfit(x, y, 1)
        assert float(fit.slope[layer]) == pytest.approx(slope, abs=1e-5)
        assert float(fit.intercept[layer]) == pytest.approx(intercept, abs=1e-5)
        r_squared = np.corrcoef(x, y)[0, 1] ** 2
        assert float(fit.r_squared[layer]) == pytest.approx(r_squared, abs=1e-5)


def test_a_constant_activation_has_no_r_squared() -> None:
    pre = -np.random.default_rng(0).random((1, 4, 5))
    fit = analysis.activation_moments(pre, np.maximum(pre, 0)).linear_fit()
    assert float(fit.slope[0]) == 0
    assert np.isnan(fit.r_squared[0])
    with pytest.raises(ValueError, match=r"pre and post: .*\(1, 4, 5\) and \(1, 4, 4\)"):
        analysis.activation_moments(pre, pre[..., :4])


def test_dead_always_on_and_sparse_units() -> None:
    pre = np.array([[[-1.0, 1.0, -1.0, 0.0], [-2.0, 2.0, 1.0, 0.0]]])
    activity = UnitActivity.of(pre, np.maximum(pre, 0))
    np.testing.assert_allclose(activity.frequency(), [[0, 1, 0.5, 0]])
    np.testing.assert_allclose(activity.dead_share(), [0.5])
    np.testing.assert_allclose(activity.always_on_share(), [0.25])
    np.testing.assert_allclose(activity.sparsity(), [5 / 8])
    near_zero = UnitActivity.of(pre, np.maximum(pre, 0), threshold=1.0)
    np.testing.assert_allclose(near_zero.sparsity(), [7 / 8])
    with pytest.raises(ValueError, match="threshold must not be negative, got -1"):
        UnitActivity.of(pre, pre, threshold=-1)


def test_unit_activity_merges() -> None:
    pre = np.random.default_rng(0).normal(size=(2, 10, 6))
    post = np.maximum(pre, 0)
    whole = UnitActivity.of(pre, post)
    merged = analysis.merge_all(
        UnitActivity.of(pre[:, part], post[:, part]) for part in (slice(0, 3), slice(3, 10))
    )
    for a, b in zip(merged, whole, strict=True):
        np.testing.assert_array_equal(a, b)


def test_weight_decay_curve_is_what_decay_leaves_over_the_papers_run() -> None:
    """Warmup over 5% of 32,600 steps to 1e-3, then linear to 1e-7: about 0.196 remains."""
    steps, warmup = 32600, 1630
    k = np.arange(steps)
    down = (1e-3 - 1e-7) * (1 - (k - warmup) / (steps - warmup)) + 1e-7
    rates = np.where(k < warmup, 1e-3 * k / warmup, down)
    curve = analysis.weight_decay_curve(0.01, rates, 0.1)
    expected = 0.01 * np.cumprod(np.concatenate([[1], 1 - 0.1 * rates]))
    np.testing.assert_allclose(curve, expected, rtol=1e-5)
    assert float(curve[-1] / curve[0]) == pytest.approx(0.196, abs=5e-4)


def test_weight_decay_curve_of_several_slopes() -> None:
    curve = analysis.weight_decay_curve(np.array([1.0, -2.0]), [0.5, 1.0], 0.2)
    np.testing.assert_allclose(curve, [[1, -2], [0.9, -1.8], [0.72, -1.44]], rtol=1e-6)
    with pytest.raises(ValueError, match=r"learning_rates: expected shape \[N\]"):
        analysis.weight_decay_curve(1.0, [[0.1]], 0.1)


@pytest.mark.parametrize("width", [3, 256, 515])
def test_covariances_of_any_width(width: int) -> None:
    x = np.random.default_rng(0).normal(2.0, 1.0, (2, 40, width)).astype(np.float32)
    covariance = Covariance.of(x).covariance()
    expected = [np.cov(layer, rowvar=False, bias=True, dtype=np.float64) for layer in x]
    np.testing.assert_allclose(covariance, expected, atol=2e-6)
    np.testing.assert_allclose(covariance, np.swapaxes(covariance, -1, -2), atol=5e-7)


def test_spectra_of_diagonal_covariances() -> None:
    covariance = np.stack([np.eye(4), np.diag([1.0, 0, 0, 0]), np.diag([3.0, 1, 0, 0])])
    np.testing.assert_allclose(analysis.participation_ratio(covariance), [4, 1, 1.6], rtol=1e-6)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    np.testing.assert_allclose(
        analysis.spectral_entropy(covariance), [math.log(4), 0, entropy], atol=1e-6
    )
    np.testing.assert_allclose(
        analysis.eigenvalue_shares(covariance)[2], [0.75, 0.25, 0, 0], atol=1e-6
    )
    divergence = analysis.spectral_divergence(covariance[1], covariance[2])
    m = np.array([0.875, 0.125])
    expected = -(m * np.log(m)).sum() - entropy / 2
    assert float(divergence) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match=r"\[..., F, F\], got \(2, 3\)"):
        analysis.participation_ratio(np.zeros((2, 3)))


def test_spectra_do_not_depend_on_the_basis() -> None:
    rng = np.random.default_rng(0)
    rotation, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    diagonal = np.diag([5.0, 3.0, 1.0, 0.5, 0.1])
    rotated = rotation @ diagonal @ rotation.T
    for statistic in (analysis.participation_ratio, analysis.spectral_entropy):
        assert float(statistic(rotated)) == pytest.approx(float(statistic(diagonal)), rel=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_participation_does_not_depend_on_the_scale(scale: float) -> None:
    """Near collapse and near divergence the squares of covariances leave float32's range."""
    covariance = np.diag([3.0, 1.0, 0.0]) * scale
    assert float(analysis.participation_ratio(covariance)) == pytest.approx(1.6, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_projected_participation_is_that_of_the_projections_covariance(scale: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 50, 3)) * [3.0, 1.0, 0.2] + 5
    kernel = rng.normal(size=(2, 3, 7))
    covariance = np.stack([np.cov(layer, rowvar=False) for layer in x])
    spectra = [
        np.linalg.eigvalsh(np.cov(a @ w, rowvar=False)) for a, w in zip(x, kernel, strict=True)
    ]
    expected = [e.sum() ** 2 / (e**2).sum() for e in spectra]
    found = analysis.projected_participation_ratio(covariance * scale, kernel)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    with pytest.raises(ValueError, match=r"kernel: expected shape \[..., D, F\]"):
        analysis.projected_participation_ratio(covariance, np.zeros(3))


def test_streamed_covariance_equals_numpy() -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 40, 6)) + 10
    merged = analysis.merge_all(Covariance.of(x[:, i]) for i in range(3))
    for layer in range(2):
        expected = np.cov(x[layer].reshape(-1, 6), rowvar=False, bias=True)
        np.testing.assert_allclose(merged.covariance()[layer], expected, atol=1e-5)
    np.testing.assert_allclose(merged.mean, x.mean((1, 2)), rtol=1e-6)


def test_specialization_by_hand() -> None:
    """Units: one responds to class 1 only, one to all alike, one never. Classes 0, 0, 0, 1."""
    post = np.array([[[0.0, 1.0, 0.0], [0.0, -1.0, 0.0], [0.0, 1.0, 0.0], [2.0, 1.0, 0.0]]])
    responses = ClassResponses.of(post, np.array([0, 0, 0, 1]), 2)
    specialization = responses.specialization()
    np.testing.assert_allclose(specialization[0, :2], [math.log(4), 0], atol=1e-6)
    assert np.isnan(specialization[0, 2])


def test_intra_class_selectivity_by_hand() -> None:
    """Units: one input of its class; all inputs of its class alike; two of three inputs; none.

    The only input of class 2 says nothing about selectivity within a class.
    """
    post = np.zeros((1, 7, 4))
    post[0, 1, 0] = 5
    post[0, :3, 1] = 2
    post[0, 3:5, 2] = 1
    post[0, 6] = 100
    responses = ClassResponses.of(post, np.array([0, 0, 0, 1, 1, 1, 2]), 3)
    selectivity = responses.intra_class_selectivity()
    two_of_three = (1 - (2 / 3) ** 2 / (2 / 3)) / (1 - 1 / 3)
    np.testing.assert_allclose(selectivity[0, :3], [1, 0, two_of_three], atol=1e-6)
    assert np.isnan(selectivity[0, 3])


def test_responses_too_small_to_be_squared_are_none() -> None:
    """A class whose squares underflow would look more selective than is possible."""
    tiny = np.geomspace(1e-25, 1e-15, 64)[None, :, None]
    found = float(ClassResponses.of(tiny, np.zeros(64, int), 1).intra_class_selectivity()[0, 0])
    x = np.where(tiny < 1e-18, 0, tiny)[0, :, 0]
    assert found == pytest.approx((1 - x.mean() ** 2 / (x**2).mean()) / (1 - 1 / 64), rel=1e-5)
    none = ClassResponses.of(np.full((1, 4, 1), 1e-20), np.zeros(4, int), 1)
    assert np.isnan(none.intra_class_selectivity()).all()


def test_class_responses_merge_and_leave_out_other_labels() -> None:
    rng = np.random.default_rng(0)
    post, classes = rng.normal(size=(2, 3, 8, 5)), rng.integers(-1, 4, size=(3, 8))
    whole = ClassResponses.of(post, classes, 4)
    merged = analysis.merge_all(ClassResponses.of(post[:, i], classes[i], 4) for i in range(3))
    np.testing.assert_array_equal(whole.num_tokens, [(classes == c).sum() for c in range(4)])
    for c in range(4):
        expected = np.abs(post[:, classes == c]).sum(1)
        np.testing.assert_allclose(whole.total[:, c], expected, rtol=1e-5)
    np.testing.assert_allclose(merged.specialization(), whole.specialization(), rtol=1e-5)
    np.testing.assert_allclose(merged.squares, whole.squares, rtol=1e-5)
    with pytest.raises(ValueError, match=r"got \(2, 3, 8, 5\) and \(3, 7\)"):
        ClassResponses.of(post, classes[:, :7], 4)
