"""The choice of a token: by hand, in frequency, and as in transformers."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfllm.measure.sampling import kept, make_sampling, sample


@pytest.mark.parametrize(
    ("top_k", "top_p", "expected"),
    [
        (None, None, [0, 1, 2, 3]),
        (1, None, [2]),
        (3, None, [0, 2, 3]),
        (9, None, [0, 1, 2, 3]),
        (None, 0.4, [2]),  # the first has 0.5 of it
        (None, 0.6, [2, 3]),  # the token that reaches it is kept
        (None, 0.9, [0, 2, 3]),
        (None, 1.0, [0, 1, 2, 3]),
        (2, 0.7, [2, 3]),  # of what is left, 5/8 and 3/8
        (2, 0.6, [2]),
        (None, 1e-46, [2]),  # zero in single precision
    ],
)
def test_what_is_kept_by_hand(top_k: int | None, top_p: float | None, expected: list[int]) -> None:
    logits_V = jnp.log(jnp.asarray([0.15, 0.05, 0.5, 0.3]))
    found_V = kept(logits_V, make_sampling(1.0, top_k, top_p))
    assert np.flatnonzero(np.isfinite(found_V)).tolist() == expected
    np.testing.assert_array_equal(np.asarray(found_V)[expected], np.asarray(logits_V)[expected])


@pytest.mark.parametrize(("top_k", "top_p", "expected"), [(1, None, 1), (None, 0.5, 2)])
def test_of_equal_logits_the_first_are_kept(
    top_k: int | None, top_p: float | None, expected: int
) -> None:
    found_V = kept(jnp.zeros(4), make_sampling(1.0, top_k, top_p))
    assert np.isfinite(found_V).tolist() == [place < expected for place in range(4)]


def test_a_share_of_all_leaves_out_nothing() -> None:
    """The sum of many small probabilities rounds to 1 before the last of them."""
    logits_V = jnp.asarray(20 * np.random.default_rng(0).normal(size=1000), jnp.float32)
    np.testing.assert_array_equal(kept(logits_V, make_sampling(1.0, None, 1.0)), logits_V)


@pytest.mark.parametrize("top_p", [None, 0.5])
@pytest.mark.parametrize("temperature", [1e-30, 1e-40, 5e-324])
def test_a_tiny_temperature_chooses_the_most_probable(
    temperature: float, top_p: float | None
) -> None:
    logits_V = jnp.asarray([-3.0, 1.0, 2.0, 0.0])
    rules = make_sampling(temperature, None, top_p)
    assert int(jax.jit(sample)(logits_V, jax.random.key(0), rules)) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "rules", [(1.0, None, None), (0.7, 5, None), (1.5, None, 0.6), (0.5, 20, 0.9), (1, 500, 1e-6)]
)
def test_rules_are_those_of_transformers(rules: tuple) -> None:
    torch = pytest.importorskip("torch")
    logits_processors = pytest.importorskip("transformers.generation.logits_process")
    temperature, top_k, top_p = rules
    logits_NV = np.random.default_rng(0).normal(0, 3, (20, 50)).astype(np.float32) / np.float32(
        temperature
    )
    expected = torch.tensor(logits_NV)
    if top_k is not None:
        expected = logits_processors.TopKLogitsWarper(top_k)(None, expected)
    if top_p is not None:
        expected = logits_processors.TopPLogitsWarper(top_p)(None, expected)
    found = jax.vmap(functools.partial(kept, sampling=make_sampling(*rules)))(logits_NV)
    np.testing.assert_allclose(
        jax.nn.softmax(found), torch.softmax(expected, -1).numpy(), rtol=2e-6, atol=1e-9
    )


def test_draws_have_the_probabilities_of_the_softmax() -> None:
    logits_V = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    keys = jax.random.split(jax.random.key(0), 20_000)
    draw = functools.partial(sample, sampling=make_sampling(0.5, None, None))
    shares = np.bincount(jax.vmap(draw, (None, 0))(logits_V, keys), minlength=4) / 20_000
    squares = np.array([0.25, 0.09, 0.0225, 0.0025])
    np.testing.assert_allclose(shares, squares / squares.sum(), atol=0.01)
