"""The ledger: planted NaN and Inf are counted, and the first one is found in execution order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfllm import analysis


def clean_sites(layers: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    return {
        "residual": normal(layers + 1, 2, 4, 8),
        "query": normal(layers, 2, 4, 2, 4),
        "key": normal(layers, 2, 4, 2, 4),
        "attention_logits": normal(layers, 2, 2, 4, 4),
        "attention_probs": normal(layers, 2, 2, 4, 4),
        "attention_out": normal(layers, 2, 4, 8),
        "mlp_pre": normal(layers, 2, 4, 16),
        "mlp_post": normal(layers, 2, 4, 16),
        "mlp_out": normal(layers, 2, 4, 8),
        "logits": normal(2, 4, 11),
        "loss": normal(),
        "gradients": {"kernel": normal(layers, 8, 3), "bias": normal(layers, 3)},
        "other_gradients": {"embedding": normal(11, 8)},
    }


def test_counts_by_layer() -> None:
    x = np.zeros((2, 3, 4), np.float32)
    x[0, 0, :2] = np.nan
    x[0, 1, 0] = np.inf
    x[1, 2, 3] = -np.inf
    x[1, 0, 0] = -7
    counts = analysis.count_nonfinite(x, keep=1)
    assert counts.nan.tolist() == [2, 0]
    assert counts.positive_inf.tolist() == [1, 0]
    assert counts.negative_inf.tolist() == [0, 1]
    assert counts.size.tolist() == [12, 12]
    assert counts.max_abs.tolist() == [0, 7]
    assert counts.total().tolist() == [3, 1]


def test_masked_logits_are_left_out() -> None:
    logits = np.where(np.tri(4, dtype=bool), 3.0, -np.inf).astype(np.float32)[None]
    logits[0, 2, 1] = -np.inf
    counts = analysis.count_nonfinite(logits, where=analysis.causal_mask(4))
    assert (int(counts.negative_inf), int(counts.size), float(counts.max_abs)) == (1, 10, 3.0)
    lowest = np.where(np.tri(4, dtype=bool), 3.0, np.finfo(np.float32).min)
    assert float(analysis.count_nonfinite(lowest, where=analysis.causal_mask(4)).max_abs) == 3.0


def test_float16_overflow_is_counted_and_the_largest_finite_value_survives() -> None:
    counts = analysis.count_nonfinite(np.array([60000, 65504, np.inf], np.float16))
    assert (int(counts.positive_inf), float(counts.max_abs)) == (1, 65504.0)


def test_all_finite() -> None:
    assert analysis.first_bad_site(analysis.ledger(clean_sites())) is None


@pytest.mark.parametrize(
    ("planted", "first"),
    [
        ([("mlp_out", (1, 0, 0, 0)), ("attention_logits", (2, 0, 0, 0, 0))], "mlp_out of layer 1"),
        ([("mlp_post", (1, 0, 0, 0)), ("mlp_pre", (1, 1, 1, 1))], "mlp_pre of layer 1"),
        ([("attention_probs", (2, 0, 0, 0, 0)), ("key", (2, 0, 0, 0, 0))], "key of layer 2"),
        ([("residual", (3, 0, 0, 0)), ("logits", (0, 0, 0))], "residual of layer 3"),
        ([("residual", (2, 0, 0, 0)), ("mlp_out", (1, 0, 0, 0))], "mlp_out of layer 1"),
        ([("loss", ()), ("gradients", (2, 0, 0))], "loss"),
        ([("gradients", (0, 0, 0)), ("gradients", (1, 0, 0))], "gradients of layer 1"),
        ([("other_gradients", (5, 5)), ("gradients", (0, 0, 0))], "gradients of layer 0"),
    ],
)
def test_the_first_bad_site_in_execution_order(planted: list, first: str) -> None:
    sites = clean_sites()
    for site, index in planted:
        array = sites[site]
        if isinstance(array, dict):
            array = next(iter(array.values()))
        array[index] = np.nan
    bad = analysis.first_bad_site(jax.jit(analysis.ledger)(sites))
    assert str(bad).startswith(f"{first}: 1 NaN, 0 +Inf and 0 -Inf among ")


def test_the_words() -> None:
    sites = clean_sites()
    sites["attention_logits"][1, 0, 0, 0, :3] = [np.nan, np.inf, -np.inf]
    bad = analysis.first_bad_site(analysis.ledger(sites))
    assert bad == ("attention_logits", 1, 1, 1, 1, 64)
    assert str(bad) == (
        "attention_logits of layer 1: 1 NaN, 1 +Inf and 1 -Inf among 64 values; "
        "every recorded site before it is finite"
    )


def test_ledger_masks_one_site() -> None:
    sites = clean_sites()
    sites["attention_logits"][..., ~np.tri(4, dtype=bool)] = -np.inf
    masked = analysis.ledger(sites, where={"attention_logits": analysis.causal_mask(4)})
    assert analysis.first_bad_site(masked) is None
    assert analysis.first_bad_site(analysis.ledger(sites)).site == "attention_logits"
    with pytest.raises(ValueError, match="for 'gradients', but gradients are counted whole"):
        analysis.ledger({"gradients": [[1.0]]}, where={"gradients": [[True]]})


def test_merged_ledgers_are_the_ledger_of_both() -> None:
    sites = clean_sites()
    sites["mlp_pre"][0, 0, 0, 0] = np.nan
    sites["mlp_pre"][0, 1, 0, 0] = -50
    halves = [{"mlp_pre": sites["mlp_pre"][:, i : i + 1]} for i in range(2)]
    merged = analysis.merge_ledgers(*[analysis.ledger(half) for half in halves])
    whole = analysis.ledger({"mlp_pre": sites["mlp_pre"]})
    jax.tree.map(np.testing.assert_array_equal, merged, whole)


def test_onset_shows_the_growth_before_it() -> None:
    history = []
    for step, scale in enumerate([1.0, 10.0, 100.0]):
        sites = clean_sites()
        for name in ("attention_logits", "residual"):
            sites[name] *= scale / np.abs(sites[name]).max()
        if step == 2:
            sites["attention_logits"][0, 0, 0, 0, 0] = np.inf
        history.append((100 * step, analysis.ledger(sites)))
    onset = analysis.find_onset(history)
    assert (onset.step, onset.site.site, onset.steps_before) == (200, "attention_logits", (0, 100))
    np.testing.assert_allclose(onset.max_abs_logit, [1, 10], rtol=1e-6)
    np.testing.assert_allclose(onset.max_abs_residual, [1, 10], rtol=1e-6)
    assert analysis.find_onset(history[:2]) is None


def test_unknown_sites_are_named() -> None:
    with pytest.raises(ValueError, match="unknown site 'mlp_prre'; did you mean 'mlp_pre'"):
        analysis.ledger({"mlp_prre": np.zeros((1, 2))})
    with pytest.raises(ValueError, match="mask for 'query', which is not among the sites"):
        analysis.ledger({"loss": 0.0}, where={"query": True})
    with pytest.raises(ValueError, match=r"where: .*\(2, 3\), got \(4,\)"):
        analysis.count_nonfinite(np.zeros((2, 3)), where=np.ones(4))
    with pytest.raises(ValueError, match="keep=3"):
        analysis.count_nonfinite(jnp.zeros((2, 3)), keep=3)
