"""Attention entropy: hand-computed cases, float64, and the recordings of the released code."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfllm import analysis

UNITS = Path(__file__).parent / "parity" / "units"
RECORDINGS = Path(__file__).parent / "recordings"
FLOAT32_MIN = np.finfo(np.float32).min


@pytest.fixture
def parity_dir(request: pytest.FixtureRequest) -> Path:
    return request.config.getoption("--parity-dir")


def uniform_causal(length: int) -> np.ndarray:
    return np.tri(length) / np.arange(1, length + 1)[:, None]


def softmax64(logits: np.ndarray, visible: np.ndarray | bool = True) -> np.ndarray:
    logits = np.where(visible, np.asarray(logits).astype(np.float64), -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def entropy64(probs: np.ndarray) -> np.ndarray:
    return -(probs * np.log(np.where(probs > 0, probs, 1))).sum(-1)


def test_one_hot_rows_have_no_entropy() -> None:
    np.testing.assert_array_equal(analysis.attention_entropy(np.eye(5)[None]), np.zeros((1, 5)))


def test_uniform_causal_row_t_has_entropy_ln_t() -> None:
    entropy = analysis.attention_entropy(uniform_causal(300)[None])
    np.testing.assert_allclose(entropy[0], np.log(np.arange(1, 301)), atol=1e-5)


def test_known_probabilities_inside_jit() -> None:
    probs = np.eye(4)[None]
    traced = jax.jit(lambda offset: analysis.attention_entropy(probs) + offset)
    np.testing.assert_array_equal(traced(1.0), np.ones((1, 4)))


@pytest.mark.parametrize("block_size", [4, 128])
def test_uniform_causal_from_logits_and_from_qk(block_size: int) -> None:
    expected = np.log(np.arange(1, 11))
    zeros = np.zeros((2, 10, 10))
    from_logits = analysis.attention_entropy_from_logits(zeros, causal=True, block_size=block_size)
    from_qk = analysis.attention_entropy_from_qk(zeros, zeros, block_size=block_size)
    np.testing.assert_allclose(from_logits, np.stack([expected] * 2), atol=1e-6)
    np.testing.assert_allclose(from_qk, np.stack([expected] * 2), atol=1e-6)


def test_a_row_with_nan_is_nan_and_no_other_row_is() -> None:
    probs = np.stack([uniform_causal(4)] * 2)
    probs[1, 2, 0] = np.nan
    expected = np.stack([np.log([1, 2, 3, 4])] * 2)
    expected[1, 2] = np.nan
    np.testing.assert_allclose(analysis.attention_entropy(probs), expected, atol=1e-6)
    assert np.isnan(analysis.head_entropy(analysis.attention_entropy(probs))).tolist() == [0, 1]


def test_recorded_attention_maps_have_the_recorded_entropies(parity_dir: Path) -> None:
    files = sorted(parity_dir.glob("fwd_*.npz"))
    assert files, f"no recording in {parity_dir}"
    for file in files:
        with np.load(file) as recording:
            maps, expected = recording["attn"], recording["entropy_head"]
            expected_layer = recording["entropy_layer"]
        entropy_LH = analysis.head_entropy(analysis.attention_entropy(maps)).mean(axis=1)
        np.testing.assert_allclose(entropy_LH, expected, atol=3e-6, err_msg=file.name)
        np.testing.assert_allclose(entropy_LH.mean(1), expected_layer, atol=3e-6, err_msg=file.name)


def test_recorded_maps_with_nan() -> None:
    """The released code counts a NaN entry as 0 (nansum); here its row is NaN, and is counted."""
    with np.load(UNITS / "entropy_nan.npz") as recording:
        maps, logged = recording["attn"], recording["logged_nan_count_layer"]
        expected_head, expected_layer = recording["entropy_head"], recording["logged_entropy_layer"]
    entropy_LBHT = np.asarray(analysis.attention_entropy(maps))
    broken_LBHT = np.isnan(maps).any(-1)
    np.testing.assert_array_equal(np.isnan(entropy_LBHT), broken_LBHT)
    nansum_LH = np.where(broken_LBHT, 0, entropy_LBHT).mean((1, 3))
    np.testing.assert_allclose(nansum_LH, expected_head, atol=3e-6)
    np.testing.assert_allclose(nansum_LH.mean(1), expected_layer, atol=3e-6)
    counts = analysis.count_nonfinite(maps, keep=1)
    np.testing.assert_array_equal(counts.nan / maps.shape[2], logged)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_every_input_type_is_computed_in_float32(dtype: str) -> None:
    probs = softmax64(np.random.default_rng(0).normal(size=(2, 3, 7, 7))).astype(jnp.dtype(dtype))
    entropy = analysis.attention_entropy(probs)
    assert entropy.dtype == jnp.float32
    expected = entropy64(np.asarray(probs).astype(np.float64))
    np.testing.assert_allclose(entropy, expected, atol=1e-6)


@pytest.mark.parametrize("model", ["gpt2", "gpt_neox"])
def test_attentions_of_a_hugging_face_model_as_numpy(model: str) -> None:
    """`[L, B, H, T, S]` recorded from transformers: one call each, no model of nfllm involved."""
    with np.load(RECORDINGS / model / "outputs.npz") as outputs:
        attention_LBHTS = outputs["attention"]
    num_layers, _, num_heads, length, _ = attention_LBHTS.shape
    expected_LBHT = entropy64(attention_LBHTS.astype(np.float64))
    entropy_LBHT = analysis.attention_entropy(attention_LBHTS)
    np.testing.assert_allclose(entropy_LBHT, expected_LBHT, atol=1e-6)
    entropy_LH = analysis.head_entropy(entropy_LBHT).mean(axis=1)
    assert entropy_LH.shape == (num_layers, num_heads)
    shares = analysis.head_histogram(entropy_LH, analysis.causal_entropy_ceiling(length))
    assert float(shares.sum()) == pytest.approx(1, abs=1e-6)


def test_a_sequence_of_layers_stands_for_their_stack() -> None:
    """Hugging Face returns a tuple of `[B, H, T, S]`, one a layer."""
    rng = np.random.default_rng(0)
    layers = tuple(
        softmax64(3 * rng.normal(size=(2, 4, 6, 6)), np.tri(6, dtype=bool)).astype(np.float16)
        for _ in range(3)
    )
    expected_LBHT = entropy64(np.stack(layers).astype(np.float64))
    for attentions in (np.stack(layers), layers, list(layers), [jnp.asarray(x) for x in layers]):
        np.testing.assert_allclose(analysis.attention_entropy(attentions), expected_LBHT, atol=1e-6)


def test_torch_tensors() -> None:
    torch = pytest.importorskip("torch")
    layers = tuple(torch.softmax(torch.randn(2, 4, 6, 6), dim=-1) for _ in range(3))
    expected_LBHT = torch.stack([torch.special.entr(layer).sum(-1) for layer in layers])
    entropy_LBHT = analysis.attention_entropy(layers)
    np.testing.assert_allclose(entropy_LBHT, expected_LBHT.numpy(), atol=1e-6)


def test_rows_that_do_not_sum_to_one_name_the_worst() -> None:
    probs = np.stack([uniform_causal(4)] * 2)
    probs[0, 1] *= 1.01
    probs[1, 3] *= 0.5
    with pytest.raises(ValueError, match=r"index \(1, 3\).*sums to 0\.5.*after the softmax"):
        analysis.attention_entropy(probs)
    entropy = analysis.attention_entropy(probs, tolerance=math.inf)
    np.testing.assert_allclose(entropy[1, 3], 0.5 * math.log(8), atol=1e-6)


def test_the_default_tolerance_is_1e_4() -> None:
    probs = uniform_causal(4)[None]
    analysis.attention_entropy(probs * (1 + 5e-5))
    with pytest.raises(ValueError, match=r"not a distribution within 0\.0001"):
        analysis.attention_entropy(probs * (1 + 5e-4))


def test_negative_probabilities_are_refused() -> None:
    probs = np.array([[[0.5, 0.5], [1.25, -0.25]]])
    with pytest.raises(ValueError, match=r"index \(0, 1\).*smallest entry is -0\.25"):
        analysis.attention_entropy(probs)


def test_keys_on_another_axis_are_recognized() -> None:
    probs = np.swapaxes(softmax64(np.random.default_rng(0).normal(size=(2, 5, 7))), 1, 2)
    with pytest.raises(ValueError, match="axis 1 does sum to 1: move it last"):
        analysis.attention_entropy(probs)


def test_float16_rows_pass_as_distributions() -> None:
    probs = softmax64(np.random.default_rng(0).normal(size=(1, 64, 512))).astype(np.float16)
    assert np.abs(probs.astype(np.float64).sum(-1) - 1).max() > 1e-5
    expected = entropy64(probs.astype(np.float64))
    np.testing.assert_allclose(analysis.attention_entropy(probs), expected, atol=1e-5)


def test_values_are_not_checked_under_jit() -> None:
    twice_uniform = np.ones((1, 2, 4)) / 2
    entropy = jax.jit(analysis.attention_entropy)(twice_uniform)
    np.testing.assert_allclose(entropy, np.full((1, 2), 2 * math.log(2)), atol=1e-6)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: analysis.attention_entropy(np.eye(3)), r"\[..., H, T, S\], got \(3, 3\)"),
        (lambda: analysis.attention_entropy(np.ones((2, 3, 0))), r"\(2, 3, 0\): an axis is empty"),
        (lambda: analysis.attention_entropy_from_logits(np.eye(3)), r"got \(3, 3\).*at least 3"),
        (lambda: analysis.head_entropy(np.zeros(3)), r"\[..., H, T\], got \(3,\)"),
        (
            lambda: analysis.attention_entropy_from_logits(
                np.zeros((1, 2, 3)), mask=np.ones((3, 2))
            ),
            r"mask: .*\(1, 2, 3\).*got \(3, 2\)",
        ),
        (
            lambda: analysis.attention_entropy_from_logits(np.zeros((1, 2, 3)), block_size=0),
            "block_size must be at least 1, got 0",
        ),
        (
            lambda: analysis.attention_entropy_from_qk(np.zeros((2, 3, 4)), np.zeros((2, 3, 5))),
            r"q and k: .*got \(2, 3, 4\) and \(2, 3, 5\)",
        ),
        (lambda: analysis.causal_entropy_ceiling(0), "positive integer, got 0"),
        (
            lambda: analysis.normalized_entropy(np.zeros((2, 3)), num_visible=np.ones(2)),
            r"num_visible: .*\(2, 3\), got \(2,\)",
        ),
    ],
)
def test_bad_shapes_say_what_was_expected(call, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        call()


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.floats(0, 40),
    shape=st.sampled_from([(1, 1), (130, 130), (70, 300)]),
    block_size=st.sampled_from([16, 1000]),
    causal=st.booleans(),
)
def test_entropy_from_logits_equals_float64(
    seed: int, scale: float, shape: tuple[int, int], block_size: int, causal: bool
) -> None:
    logits = (scale * np.random.default_rng(seed).normal(size=(2, *shape))).astype(np.float32)
    visible = np.tri(*shape, shape[1] - shape[0], dtype=bool) if causal else True
    probs = softmax64(logits, visible)
    expected = entropy64(probs)
    entropy = analysis.attention_entropy_from_logits(logits, causal=causal, block_size=block_size)
    np.testing.assert_allclose(entropy, expected, atol=1e-5, rtol=0)
    np.testing.assert_allclose(analysis.attention_entropy(probs), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale", [0.0, 1.0, 40.0])
def test_long_rows_equal_float64(scale: float) -> None:
    """Adding thousands of equal terms one by one in float32 is off by 1e-4."""
    logits = (scale * np.random.default_rng(0).normal(size=(1, 8, 8192))).astype(np.float32)
    probs = softmax64(logits)
    expected = entropy64(probs)
    entropy = analysis.attention_entropy_from_logits(logits)
    np.testing.assert_allclose(entropy, expected, atol=1e-5, rtol=0)
    np.testing.assert_allclose(analysis.attention_entropy(probs), expected, atol=1e-5, rtol=0)


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.floats(0, 40),
    block_size=st.sampled_from([16, 1000]),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
def test_entropy_from_qk_equals_float64(
    seed: int, scale: float, block_size: int, dtype: str
) -> None:
    rng = np.random.default_rng(seed)
    q, k = (jnp.asarray(rng.normal(size=(2, n, 16)), dtype) for n in (70, 90))
    q64, k64 = (np.asarray(x).astype(np.float64) for x in (q, k))
    logits = np.float64(np.float32(scale / 4)) * q64 @ np.swapaxes(k64, -1, -2)
    expected = entropy64(softmax64(logits, np.tri(70, 90, 20, dtype=bool)))
    entropy = analysis.attention_entropy_from_qk(q, k, scale=scale / 4, block_size=block_size)
    np.testing.assert_allclose(entropy, expected, atol=1e-5, rtol=0)


def test_scores_of_bfloat16_queries_and_keys_are_float32() -> None:
    """In the program itself: the CPU compiler would hide a rounding that an accelerator does."""
    q = jax.ShapeDtypeStruct((2, 300, 16), jnp.bfloat16)
    program = jax.jit(analysis.attention_entropy_from_qk).lower(q, q).as_text()
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert len(products) == 1
    assert products[0].endswith("-> tensor<2x1x300x128xf32>")
    assert "HIGHEST" in products[0]


def test_default_scale_is_one_over_root_of_head_width() -> None:
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 3, 8, 25))
    expected = entropy64(softmax64(q @ np.swapaxes(k, 1, 2) / 5))
    entropy = analysis.attention_entropy_from_qk(q, k, causal=False)
    np.testing.assert_allclose(entropy, expected, atol=1e-6)


def test_masks_as_models_apply_them() -> None:
    """-Inf, the type's lowest number, a boolean mask and `causal` hide the same keys."""
    logits = np.random.default_rng(0).normal(size=(2, 3, 9, 9)).astype(np.float32)
    causal = np.tri(9, dtype=bool)
    padding = np.arange(9) != 0
    visible = causal & np.array([padding, np.ones(9, bool)])[:, None, None]
    visible |= np.eye(9, dtype=bool)
    expected = entropy64(softmax64(logits, visible))
    for hidden in (-np.inf, FLOAT32_MIN):
        entropy = analysis.attention_entropy_from_logits(np.where(visible, logits, hidden))
        np.testing.assert_allclose(entropy, expected, atol=1e-6)
    for block_size in (2, 9):
        entropy = analysis.attention_entropy_from_logits(
            logits, mask=visible, causal=True, block_size=block_size
        )
        np.testing.assert_allclose(entropy, expected, atol=1e-6)


@pytest.mark.parametrize("hidden", [-np.inf, FLOAT32_MIN])
def test_whole_blocks_of_masked_keys(hidden: float) -> None:
    """Left padding hides the first blocks of every query, and the causal mask the last."""
    logits = np.random.default_rng(0).normal(size=(1, 9, 9)).astype(np.float32)
    visible = np.tri(9, dtype=bool) & (np.arange(9) >= 5)
    logits = np.where(visible, logits, np.float32(hidden))
    for block_size in (2, 9):
        entropy = analysis.attention_entropy_from_logits(logits, block_size=block_size)
        expected = entropy64(softmax64(logits[:, 5:], visible[5:]))
        np.testing.assert_allclose(entropy[:, 5:], expected, atol=1e-6)


@pytest.mark.parametrize("block_size", [2, 8])
def test_non_finite_logits_count_only_where_they_are_seen(block_size: int) -> None:
    logits = np.zeros((1, 6, 6), np.float32)
    logits[0, :, 3] = np.nan
    logits[0, :, 5] = np.inf
    entropy = analysis.attention_entropy_from_logits(logits, causal=True, block_size=block_size)
    np.testing.assert_allclose(entropy[0, :3], np.log([1, 2, 3]), atol=1e-6)
    assert np.isnan(entropy[0, 3:]).all()


@pytest.mark.parametrize("block_size", [3, 8])
def test_a_query_that_sees_no_key_is_nan_with_zero_gradient(block_size: int) -> None:
    logits = np.random.default_rng(0).normal(size=(1, 2, 8)).astype(np.float32)
    mask = np.array([[True] * 8, [False] * 8])

    def entropy(x: jax.Array) -> jax.Array:
        return analysis.attention_entropy_from_logits(x, mask=mask, block_size=block_size)

    value = entropy(logits)
    np.testing.assert_allclose(value[0, 0], entropy64(softmax64(logits))[0, 0], atol=1e-6)
    assert np.isnan(value[0, 1])
    gradient = jax.grad(lambda x: entropy(x).sum())(logits)
    np.testing.assert_array_equal(gradient[0, 1], np.zeros(8))
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("block_size", [5, 64])
@pytest.mark.parametrize("hidden", [None, -np.inf, FLOAT32_MIN])
def test_gradient_from_logits(block_size: int, hidden: float | None) -> None:
    """dH/ds_j = -p_j (ln p_j + H), in float64."""
    logits = (10 * np.random.default_rng(0).normal(size=(2, 12, 12))).astype(np.float32)
    visible = np.tri(12, dtype=bool)
    probs = softmax64(logits, visible)
    surprise = np.log(np.where(probs > 0, probs, 1))
    expected = -probs * (surprise + entropy64(probs)[..., None])
    masked = logits if hidden is None else np.where(visible, logits, np.float32(hidden))

    def total(x: jax.Array) -> jax.Array:
        causal = hidden is None
        return analysis.attention_entropy_from_logits(x, causal=causal, block_size=block_size).sum()

    np.testing.assert_allclose(jax.grad(total)(masked), expected, atol=1e-5)


@pytest.mark.parametrize("num_key_heads", [1, 2, 6])
def test_grouped_heads_share_keys_one_after_the_other(num_key_heads: int) -> None:
    """As repeat_kv of transformers: query head h uses key head h // (H / G)."""
    rng = np.random.default_rng(0)
    q = rng.normal(size=(3, 6, 5, 8))
    k = rng.normal(size=(3, num_key_heads, 9, 8))
    logits = np.einsum("bhtk,bhsk->bhts", q, np.repeat(k, 6 // num_key_heads, axis=1)) / 8**0.5
    expected = entropy64(softmax64(logits, np.tri(5, 9, k=4, dtype=bool)))
    for block_size in (4, 128):
        found = analysis.attention_entropy_from_qk(q, k, block_size=block_size)
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("heads", [(6, 4), (4, 6)])
def test_grouped_heads_that_do_not_divide_are_an_error(heads: tuple[int, int]) -> None:
    q, k = (np.zeros((2, number, 5, 8)) for number in heads)
    message = f"q has {heads[0]} heads, which must be a multiple of the {heads[1]} heads of k"
    with pytest.raises(ValueError, match=message):
        analysis.attention_entropy_from_qk(q, k)


def test_gradient_from_qk() -> None:
    rng = np.random.default_rng(0)
    q, k = (rng.normal(size=(1, 10, 4)).astype(np.float32) for _ in range(2))
    probs = softmax64(q.astype(np.float64) @ np.swapaxes(k, 1, 2) / 2, np.tri(10, dtype=bool))
    surprise = np.log(np.where(probs > 0, probs, 1))
    by_score = -probs * (surprise + entropy64(probs)[..., None]) / 2

    def total(q: jax.Array, k: jax.Array) -> jax.Array:
        return analysis.attention_entropy_from_qk(q, k, block_size=3).sum()

    by_q, by_k = jax.grad(total, argnums=(0, 1))(q, k)
    np.testing.assert_allclose(by_q, by_score @ k, atol=1e-5)
    np.testing.assert_allclose(by_k, np.swapaxes(by_score, 1, 2) @ q, atol=1e-5)


def test_gradient_from_probs_is_finite_at_zero() -> None:
    probs = np.array([[[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]], np.float32)
    gradient = jax.grad(lambda p: analysis.attention_entropy(p).sum())(probs)
    expected = [[[math.log(2) - 1, math.log(2) - 1, 0], [-1, 0, 0]]]
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_no_square_tensor_and_little_memory() -> None:
    """At T = 4096 with 12 heads, temporaries stay below an eighth of the probabilities."""
    q = jax.ShapeDtypeStruct((12, 4096, 64), jnp.float32)
    program = jax.jit(analysis.attention_entropy_from_qk).lower(q, q)
    assert "4096x4096" not in program.as_text()
    temporaries = program.compile().memory_analysis().temp_size_in_bytes
    assert temporaries < 12 * 4096 * 4096 * 4 / 8


def test_head_entropy_keeps_the_batch_and_leaves_out_padding() -> None:
    entropy_BHT = np.arange(24.0).reshape(2, 3, 4)
    entropy_BHT[1, 2, 3] = np.nan
    expected = entropy_BHT.mean(-1)
    np.testing.assert_allclose(analysis.head_entropy(entropy_BHT), expected, atol=1e-6)
    where = np.array([[[True, True, False, False]], [[True, False, False, False]]])
    masked = analysis.head_entropy(entropy_BHT, where=where)
    np.testing.assert_allclose(masked, [[0.5, 4.5, 8.5], [12, 16, 20]], atol=1e-6)
    assert np.isnan(analysis.head_entropy(entropy_BHT, where=np.zeros(4, bool))).all()


def test_normalized_entropy_of_uniform_attention_is_one() -> None:
    entropy = analysis.attention_entropy(np.stack([uniform_causal(50)] * 2))
    expected = np.ones((2, 50))
    expected[:, 0] = 0
    np.testing.assert_allclose(analysis.normalized_entropy(entropy), expected, atol=1e-6)
    bidirectional = analysis.attention_entropy(np.full((2, 3, 8), 1 / 8))
    normalized = analysis.normalized_entropy(bidirectional, num_visible=8)
    np.testing.assert_allclose(normalized, np.ones((2, 3)), atol=1e-6)


def test_normalized_entropy_keeps_nan() -> None:
    assert np.isnan(analysis.normalized_entropy(np.array([np.nan, np.nan]))).all()


@pytest.mark.parametrize(("length", "ceiling"), [(1, 0.0), (128, 3.87817), (256, 4.55960)])
def test_causal_ceiling(length: int, ceiling: float) -> None:
    computed = analysis.causal_entropy_ceiling(length)
    assert computed == pytest.approx(ceiling, abs=5e-6)
    assert computed == pytest.approx(np.log(np.arange(1, length + 1)).mean(), abs=1e-12)
    uniform = analysis.attention_entropy(uniform_causal(length)[None])
    assert float(analysis.head_entropy(uniform)[0]) == pytest.approx(computed, abs=2e-6)


def test_under_vmap_and_jit() -> None:
    logits = np.random.default_rng(0).normal(size=(4, 2, 6, 6)).astype(np.float32)
    expected = entropy64(softmax64(logits, np.tri(6, dtype=bool)))
    mapped = jax.jit(
        jax.vmap(lambda x: analysis.attention_entropy_from_logits(x, causal=True, block_size=4))
    )
    np.testing.assert_allclose(mapped(logits), expected, atol=1e-6)
