"""What holds for every function of nfllm.analysis: NaN in, NaN out; scale; degenerate input; masks.

Each entry of FUNCTIONS maps one array `[2, 3, 6, 6]` (layers, heads or sequences, tokens, width) of
positive rows that add up to 1, so that all functions can read it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfllm import analysis
from nfllm.analysis import ClassResponses, Comoments, Covariance, Moments, UnitActivity

pytestmark = pytest.mark.slow

A = analysis
SHAPE = (2, 3, 6, 6)
TOKENS = np.array([[0, 1, 0, 1, 0, 1]] * 3)
KEY = jax.random.key(0)


def causal(x: Any) -> Any:
    x = jnp.asarray(x)
    x = jnp.where(jnp.tri(x.shape[-1], dtype=bool), x, 0)
    return x / x.sum(-1, keepdims=True)


def activity(x: Any) -> UnitActivity:
    return UnitActivity.of(x, x)


def covariance(x: Any) -> Any:
    return Covariance.of(x, keep=2).covariance()


# What has one result a layer, and reads every entry of the layer.
FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "attention_entropy": lambda x: A.attention_entropy(x),
    "attention_entropy_from_logits": lambda x: A.attention_entropy_from_logits(x),
    "attention_entropy_from_qk": lambda x: A.attention_entropy_from_qk(x, x, causal=False),
    "head_entropy": lambda x: A.head_entropy(x),
    "normalized_entropy": lambda x: A.normalized_entropy(x),
    "head_entropy_spread": lambda x: A.head_entropy_spread(x),
    "head_divergence": lambda x: A.head_divergence(x),
    "effective_heads": lambda x: A.effective_heads(x),
    "overload_share": lambda x: A.overload_share(x, 1.0),
    "collapse_share": lambda x: A.collapse_share(x, 1.0),
    "shannon_entropy": lambda x: A.shannon_entropy(x),
    "jensen_shannon": lambda x: A.jensen_shannon(x, jnp.flip(jnp.asarray(x), -1)),
    "sink_score": lambda x: A.sink_score(causal(x)),
    "last_keys_mass": lambda x: A.last_keys_mass(causal(x), 2),
    "previous_token_score": lambda x: A.previous_token_score(causal(x)),
    "induction_score": lambda x: A.induction_score(causal(x)[:, :, None], TOKENS),
    "logit_spread": lambda x: A.logit_spread(x),
    "entropy_by_temperature": lambda x: jnp.stack([*A.entropy_by_temperature(x, [0.5, 2.0])], -1),
    "entropy_floor": lambda x: A.entropy_floor(x, 6),
    "mean_norm": lambda x: A.mean_norm(x),
    "rms": lambda x: A.rms(x),
    "saturation": lambda x: A.saturation(x, keep=1),
    "branch_ratio": lambda x: A.branch_ratio(x, jnp.flip(jnp.asarray(x), -1)),
    "token_similarity": lambda x: A.token_similarity(x),
    "effective_rank": lambda x: A.effective_rank(x),
    "kurtosis": lambda x: A.kurtosis(x),
    "norm_by_layer": lambda x: A.norm_by_layer({"a": x, "b": np.ones(SHAPE, np.float32)}),
    "participation_ratio": lambda x: A.participation_ratio(x),
    "projected_participation_ratio": lambda x: A.projected_participation_ratio(x, x),
    "eigenvalue_shares": lambda x: A.eigenvalue_shares(x),
    "spectral_entropy": lambda x: A.spectral_entropy(x),
    "spectral_divergence": lambda x: A.spectral_divergence(x, np.diag(np.arange(1.0, 7))),
    "activation_moments": lambda x: jnp.stack(A.activation_moments(x, x).linear_fit(), -1),
    "Comoments": lambda x: Comoments.of(x, x, axis=(1, 2, 3)).linear_fit().r_squared,
    "Moments": lambda x: jnp.stack(Moments.of(x, axis=(1, 2, 3))[1:], -1),
    "Covariance": covariance,
    "UnitActivity": lambda x: jnp.stack(
        [
            f.reshape(2, -1).mean(-1)
            for f in (
                activity(x).frequency(),
                activity(x).dead_share(),
                activity(x).always_on_share(),
                activity(x).sparsity(),
            )
        ],
        -1,
    ),
    "ClassResponses": lambda x: jnp.stack(
        [
            (responses := ClassResponses.of(x, TOKENS, 2)).specialization().mean(-1),
            responses.intra_class_selectivity().mean(-1),
        ],
        -1,
    ),
    "bootstrap_interval": lambda x: jnp.stack(
        A.bootstrap_interval(
            jnp.moveaxis(jnp.asarray(x).reshape(2, -1), 1, 0), key=KEY, num_resamples=500
        ),
        -1,
    ),
    "weight_decay_curve": lambda x: jnp.moveaxis(A.weight_decay_curve(x, [0.1], 0.1), 1, 0),
}
# What looks for NaN and counts it, reads numbers of seeds or lengths, or has no numbers at all.
OTHERS = {
    *("Alert", "AlertThresholds", "alerts"),
    *("BadSite", "Ledger", "NonfiniteCounts", "Onset", "count_nonfinite", "find_onset"),
    *("first_bad_site", "ledger", "merge_ledgers", "Histogram", "head_histogram"),
    *("Interval", "LinearFit", "SeedComparison", "compare_seeds", "seed_interval"),
    *("array_namespace", "causal_entropy_ceiling", "causal_mask", "visible_keys"),
    *("merge_all", "to_host", "update", "reference_maximum"),
}


def distributions() -> np.ndarray:
    return np.random.default_rng(0).dirichlet(np.ones(6), SHAPE[:-1]).astype(np.float32)


def test_every_public_name_is_here() -> None:
    assert FUNCTIONS.keys() | OTHERS == set(analysis.__all__)
    assert not FUNCTIONS.keys() & OTHERS


@pytest.mark.parametrize("where", ["an entry", "a layer"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_nan_in_nan_out(name: str, where: str) -> None:
    x = distributions()
    x[(1, 1, 4, 1) if where == "an entry" else 1] = np.nan
    result = np.asarray(FUNCTIONS[name](x))
    assert np.isfinite(result[0]).all()
    assert np.isnan(result[1]).any()
    if where == "a layer":
        # Self-similarity is 1 by definition, and the first query's normalized entropy 0 / 0.
        assert np.isnan(result[1]).all()


def test_nan_of_seeds_is_nan() -> None:
    interval = analysis.seed_interval([1.0, np.nan, 2.0])
    comparison = analysis.compare_seeds([1, np.nan, 3], [1, 2, 3])
    for numbers in (interval, comparison[:4]):
        assert np.isnan(np.array(numbers, float)).all()


# Of a normal sample times a scale: value over scale ** power is what it is at scale 1.
SCALE_FREE = {
    "kurtosis": 0,
    "effective_rank": 0,
    "token_similarity": 0,
    "branch_ratio": 0,
    "participation_ratio": 0,
    "projected_participation_ratio": 0,
    "eigenvalue_shares": 0,
    "spectral_entropy": 0,
    "mean_norm": 1,
    "rms": 1,
    "norm_by_layer": 1,
    "logit_spread": 1,
    "head_entropy_spread": 1,
}


@pytest.mark.parametrize("scale", [1e-25, 1e-10, 1e10, 1e19, 2.0**120])
@pytest.mark.parametrize(("name", "power"), SCALE_FREE.items())
def test_scale(name: str, power: int, scale: float) -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 6, 40)).astype(np.float32)
    if ("ratio" in name and "branch" not in name) or name.startswith(("eigen", "spectral")):
        x = np.einsum("...nf,...ng->...fg", x, x).astype(np.float32)
    function = FUNCTIONS[name] if name != "norm_by_layer" else analysis.norm_by_layer
    right = np.float64(function(x))
    found = np.float64(function(np.float32(scale) * x)) / scale**power
    assert np.isfinite(right).all()
    np.testing.assert_allclose(found, right, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0, 0.3, 1e-20, 12345.678])
def test_constants_are_degenerate(value: float) -> None:
    """Rounding of their mean must not make them vary."""
    x = np.full((1, 700, 3), value, np.float32)
    other = np.random.default_rng(0).normal(size=x.shape).astype(np.float32)
    fits = [Comoments.of(x, y, axis=(1, 2)).linear_fit() for y in (x, other)]
    for fit in fits:
        assert np.isnan([float(f[0]) for f in fit]).all()
    assert np.isnan(Comoments.of(other, x, axis=(1, 2)).linear_fit().r_squared[0])
    merged = Moments.of(x[:, :300], axis=(1, 2)).merge(Moments.of(x[:, 300:], axis=(1, 2)))
    assert (float(merged.mean[0]), float(merged.variance()[0])) == (np.float32(value), 0.0)
    of_constant = Covariance.of(x[:, :300]).merge(Covariance.of(x[:, 300:])).covariance()
    for result in (
        analysis.kurtosis(np.swapaxes(x, 1, 2)),
        analysis.participation_ratio(of_constant),
        analysis.projected_participation_ratio(of_constant, np.eye(3)),
        analysis.spectral_entropy(of_constant),
        analysis.spectral_divergence(of_constant, of_constant),
    ):
        assert np.isnan(result).all()
    assert float(analysis.head_entropy_spread(x[0, :, 0])) == 0
    assert float(analysis.logit_spread(x[:, :2].swapaxes(1, 2)[..., None, :])[0, 0]) == 0


def masked_functions(mask: Any) -> dict[str, Any]:
    logits, entropy = distributions(), distributions()[..., 0]
    queries = jnp.asarray(np.asarray(mask)[-1])
    return {
        "from_logits": lambda: A.attention_entropy_from_logits(logits, mask=mask),
        "from_qk": lambda: A.attention_entropy_from_qk(logits, logits, mask=mask, causal=False),
        "temperature": lambda: A.entropy_by_temperature(logits, [1.0, 2.0], mask=mask),
        "logit_spread": lambda: A.logit_spread(logits, mask=mask),
        "head_entropy": lambda: A.head_entropy(entropy, where=queries),
        "moments": lambda: Moments.of(logits, axis=(1, 2, 3), where=mask),
        "count_nonfinite": lambda: A.count_nonfinite(logits, where=mask),
        "ledger": lambda: A.ledger({"query": logits}, where={"query": mask}),
    }


SEEN = np.tri(6, dtype=bool)
SEEN[-1, :2] = False


@pytest.mark.parametrize("hidden", [np.finfo(np.float32).min, -np.inf, -1e4, 0.0])
@pytest.mark.parametrize("name", masked_functions(SEEN))
def test_additive_masks_are_refused(name: str, hidden: float) -> None:
    """Read as booleans they hide what is seen; 0.0 is one that hides nothing."""
    additive = np.where(SEEN, 0.0, hidden).astype(np.float32)
    with pytest.raises(ValueError, match=r"(mask|where): expected booleans, .*pass `mask == 0`"):
        masked_functions(additive)[name]()


@pytest.mark.parametrize("name", masked_functions(SEEN))
def test_masks_of_zero_and_one_are_booleans(name: str) -> None:
    expected = masked_functions(SEEN)[name]()
    for dtype in (np.int64, np.uint8, np.float32, jnp.bfloat16):
        found = masked_functions(SEEN.astype(dtype))[name]()
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(a, b)


def test_masks_under_jit() -> None:
    logits = distributions()
    entropy = jax.jit(lambda x, mask: A.attention_entropy_from_logits(x, mask=mask))
    with pytest.raises(ValueError, match=r"expected booleans, .* got float32; "):
        entropy(logits, SEEN.astype(np.float32))
    expected = A.attention_entropy_from_logits(logits, mask=SEEN)
    for dtype in (bool, np.int32):
        np.testing.assert_allclose(entropy(logits, SEEN.astype(dtype)), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn"])
@pytest.mark.parametrize("form", ["tensor", "with a graph", "layers", "not contiguous"])
def test_tensors_of_pytorch(dtype: str, form: str) -> None:
    torch = pytest.importorskip("torch")
    exact = torch.from_numpy(distributions()).to(getattr(torch, dtype))
    expected = jnp.asarray(exact.float().numpy())
    x: Any = exact
    if form == "with a graph":
        x = exact.clone().requires_grad_()
    elif form == "layers":
        x = tuple(exact)
    elif form == "not contiguous":
        x = exact.transpose(1, 2).contiguous().transpose(1, 2)
    read = analysis.arrays.as_array(x)
    assert read.dtype == ("float32" if dtype == "float64" else dtype)
    np.testing.assert_array_equal(read.astype(jnp.float32), expected)
    # Every function reads its arrays in the same way.
    tolerance = {"tolerance": np.inf} if "8" in dtype else {}
    np.testing.assert_allclose(
        analysis.attention_entropy(x, **tolerance),
        -(np.float64(expected) * np.log(np.maximum(np.float64(expected), 1e-30))).sum(-1),
        atol=1e-5,
    )


def test_masked_entries_are_not_read_as_numbers() -> None:
    x = np.ma.masked_array(distributions(), mask=False)
    np.testing.assert_allclose(analysis.rms(x), analysis.rms(x.data))
    x[0, 0, 0, 0] = np.ma.masked
    with pytest.raises(ValueError, match=r"shape \(2, 3, 6, 6\) has masked entries"):
        analysis.rms(x)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e5m2", "float8_e4m3fn"])
def test_uniform_rows_of_any_type_and_length_are_distributions(dtype: str) -> None:
    for num_keys in (3, 48, 1000, 50_000, 300_000):
        rows = jnp.full((1, 1, num_keys), 1 / num_keys).astype(dtype)
        if float(rows[0, 0, 0].astype(jnp.float32)):
            total = float(num_keys) * float(rows[0, 0, 0].astype(jnp.float32))
            entropy = float(analysis.attention_entropy(rows)[0, 0])
            assert entropy == pytest.approx(-total * np.log(total / num_keys), rel=1e-4)


def test_small_divergences_are_exact_and_not_negative() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(50), 4000)
    for step in (0.0, 1e-6, 1e-4, 1e-2, 0.5, 1.0):
        p32 = p.astype(np.float32)
        q32 = (p32 * (1 + step * rng.uniform(-1, 1, p.shape))).astype(np.float32)
        found = np.float64(analysis.jensen_shannon(p32, q32))
        a, b = np.float64(p32), np.float64(q32)
        d = (a - b) / np.where(a + b == 0, 1, a + b)
        terms = 2 * d * np.arctanh(np.clip(d, -0.999999999, 0.999999999)) + np.log1p(-(d**2))
        exact = ((a + b) * terms).sum(-1) / 4
        assert found.min() >= 0
        np.testing.assert_allclose(found, exact, rtol=2e-6, atol=1e-30)
    heads = rng.dirichlet(np.ones(2000), (1, 5, 2)).astype(np.float32)
    divergence = np.asarray(analysis.head_divergence(heads))
    np.testing.assert_array_equal(divergence[:, range(5), range(5)], 0)
    assert divergence.min() >= 0
    assert np.isnan(analysis.jensen_shannon([1.5, -0.5], [0.5, 0.5]))


BIG = 3_000_000_000  # int64, but not int32


def test_large_integers_are_read_by_their_value() -> None:
    moments = Moments.of(np.array([BIG, BIG + 1024]), axis=0)
    assert float(moments.mean) == pytest.approx(BIG + 512, rel=1e-7)
    assert float(moments.minimum) == BIG
    assert float(analysis.rms([BIG, BIG], keep=0)) == pytest.approx(BIG, rel=1e-6)
    # Unsigned ones, and parts of a stack.
    norm = analysis.mean_norm([np.array([2**32, 0], np.uint64), np.zeros(2, np.uint64)], keep=0)
    assert float(norm) == pytest.approx(2**31)


def test_token_ids_that_jax_cannot_hold_are_refused() -> None:
    probs = np.full((1, 1, 3, 3), 1 / 3)
    with pytest.raises(ValueError, match="integers from 7 to 4294967303, which do not fit"):
        analysis.induction_score(probs, np.array([[7, 2**32 + 7, 9]]))


def test_integers_as_queries_and_keys() -> None:
    q = np.arange(12).reshape(1, 3, 4)
    found = analysis.attention_entropy_from_qk(q, q)
    np.testing.assert_array_equal(found, analysis.attention_entropy_from_qk(q / 1.0, q / 1.0))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_spectra_of_what_is_not_finite_are_nan(size: int, bad: float) -> None:
    for place in np.ndindex(size, size):
        matrix = np.eye(size) + 0.1
        matrix[place] = matrix[place[::-1]] = bad
        assert np.isnan(analysis.eigenvalue_shares(matrix)).all()
        assert np.isnan(analysis.spectral_entropy(matrix))
        assert np.isnan(analysis.effective_heads(matrix))


def test_temperature_one_changes_nothing() -> None:
    lowest = float(np.finfo(np.float32).min)
    rows = [[1.0, 3.0, 2.0], [lowest] * 3, [0.0, lowest, -np.inf], [5.0, np.inf, 1.0]]
    logits = np.array([rows], np.float32)
    (found,) = analysis.entropy_by_temperature(logits, [1.0])
    np.testing.assert_allclose(
        found, analysis.attention_entropy_from_logits(logits), rtol=1e-5, equal_nan=True
    )
    assert float(found[0, 1]) == pytest.approx(np.log(3))


def test_the_lowest_temperatures_leave_the_largest_logit() -> None:
    logits = np.array([[[0.0, 100.0, 99.0], [7.0, 7.0, -50.0], [1.0, 2.0, 3.0]]])
    found = analysis.entropy_by_temperature(logits, [1e-37, 1e-3], causal=False)
    np.testing.assert_allclose(found, [[[0, np.log(2), 0]]] * 2, atol=1e-6)


def test_covariances_on_the_host_stay_in_double_precision() -> None:
    large = analysis.to_host(Covariance.of([[[-(2.0**12)], [2.0**12]]]))  # scatter 2^25
    small = analysis.to_host(Covariance.of([[[-0.5], [0.5]]]))
    merged = large
    for _ in range(100):
        merged = merged.merge(small)
    assert float((merged.scatter - large.scatter).item()) == pytest.approx(50)
    assert isinstance(merged.covariance(), np.ndarray)
    with pytest.raises(ValueError, match=r"x: expected shape \[kept, ..., N, F\]"):
        Covariance.of(np.ones((2, 3)))


def test_squares_that_overflow_have_no_selectivity() -> None:
    post = np.array([[[3e19], [1.0], [1.0]]])
    responses = ClassResponses.of(post, np.zeros(3, int), 1)
    assert np.isnan(responses.intra_class_selectivity()).all()
    tame = ClassResponses.of(post / 1e10, np.zeros(3, int), 1)
    assert float(tame.intra_class_selectivity()[0, 0]) == pytest.approx(1.0)


@pytest.mark.parametrize("function", [analysis.overload_share, analysis.collapse_share])
def test_the_maximum_is_one_number(function: Callable[..., jax.Array]) -> None:
    with pytest.raises(ValueError, match=r"maximum: expected one number, got shape \(2,\)"):
        function(np.full((2, 2), 3.0), [3.9, 30.0])


def test_a_mask_of_queries_must_fit() -> None:
    with pytest.raises(ValueError, match=r"where: expected a shape that broadcasts to \(2, 3\)"):
        analysis.head_entropy(np.ones((2, 3)), where=np.ones(4, bool))


def test_ledgers_of_other_sites_do_not_merge() -> None:
    a, b = analysis.ledger({"loss": 1.0}), analysis.ledger({"loss": 1.0, "logits": np.nan})
    for pair in ((a, b), (b, a)):
        with pytest.raises(ValueError, match="only one of the two ledgers has logits"):
            analysis.merge_ledgers(*pair)


def test_axes_of_numpy_integers() -> None:
    x = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(Moments.of(x, axis=np.int64(1)).mean, [1, 4])
