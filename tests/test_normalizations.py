"""Normalizations against float64 formulas, their invariances, and what they start from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from nfllm.model.evonorm import EvoNorm
from nfllm.model.normalizations import NORMALIZATIONS
from nfllm.model.pointwise import FUNCTIONS

WIDTH = 16
LEARNED = {
    "layernorm": {"scale", "bias"},
    "rmsnorm": {"scale"},
    "none": set(),
    "evonorm_s0": {"gate", "scale", "bias"},
    "dyt": {"alpha", "scale", "bias"},
    "frozen_layernorm": {"scale", "bias", "norm_gate", "sigma"},
    **{
        name: {"alpha", "shift", "scale", "bias"}
        for name in ("derf", "isru", "arctan", "hardtanh", "expsign")
    },
}
POINT_FUNCTIONS = {
    "dyt": np.tanh,
    "derf": erf,
    "isru": lambda x: x / np.hypot(1, x),
    "arctan": lambda x: 2 / np.pi * np.arctan(x),
    "hardtanh": lambda x: np.clip(x, -1, 1),
    "expsign": lambda x: np.sign(x) * (1 - np.exp(-np.abs(x))),
}
SLOPES = {
    "dyt": lambda x: np.cosh(np.clip(x, -300, 300)) ** -2.0,
    "derf": lambda x: 2 / np.sqrt(np.pi) * np.exp(-(x**2)),
    "isru": lambda x: np.hypot(1, x) ** -3.0,
    "arctan": lambda x: 2 / np.pi / (1 + x**2),
    "hardtanh": lambda x: 1.0 * (np.abs(x) < 1),
    "expsign": lambda x: np.exp(-np.abs(x)),
}


def module(name, epsilon=1e-5, dtype=jnp.float32):
    return NORMALIZATIONS[name](epsilon=epsilon, dtype=dtype)


def random_parameters(name):
    generator = np.random.default_rng(1)
    scalars = {"alpha", "shift"}
    found = {
        key: generator.normal(size=() if key in scalars else WIDTH).astype(np.float32)
        for key in sorted(LEARNED[name])
    }
    statistics = {"norm_gate": np.float32([0.0]), "sigma": np.float32([1.7])}
    return found | (statistics if name == "frozen_layernorm" else {})


def logistic(x):
    return np.exp(-np.logaddexp(0, -x))


def formula(name, x, p, epsilon):
    assert name in LEARNED, f"{name} needs its parameters in LEARNED, a formula and a derivative"
    if name == "none":
        return x
    if name == "evonorm_s0":
        gated = x * logistic(p["gate"] * x)
        return p["scale"] * gated / np.sqrt(x.var(-1, keepdims=True) + epsilon) + p["bias"]
    if name in POINT_FUNCTIONS:
        inner = p["alpha"] * x + p.get("shift", 0.0)
        return p["scale"] * POINT_FUNCTIONS[name](inner) + p["bias"]
    if name in ("layernorm", "frozen_layernorm"):
        x = x - x.mean(-1, keepdims=True)
    if name == "frozen_layernorm":
        return p["scale"] * x / p["sigma"] + p["bias"]
    assert name in ("layernorm", "rmsnorm"), f"{name} needs a formula here"
    y = x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon)
    return p["scale"] * y + p.get("bias", 0.0)


def test_every_normalization_names_its_parameters():
    assert LEARNED.keys() == NORMALIZATIONS.keys()


@pytest.mark.parametrize("name", sorted(NORMALIZATIONS))
@pytest.mark.parametrize("epsilon", [1e-5, 0.5])
@pytest.mark.parametrize("axes", [(2, 3), (2, 3, 4)])
def test_value(name, epsilon, axes):
    x = np.random.default_rng(0).normal(1.0, 2.0, (*axes, WIDTH)).astype(np.float32)
    params = random_parameters(name)
    y = module(name, epsilon).apply({"params": params}, jnp.asarray(x))
    expected = formula(name, *jax.tree.map(np.float64, (x, params)), epsilon)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted(NORMALIZATIONS))
def test_parameters_and_their_start(name):
    variables = module(name).init(jax.random.key(0), jnp.ones((1, 2, WIDTH)))
    params = variables.get("params", {})
    start = {
        "alpha": np.float32(0.5),
        "shift": np.float32(0.0),
        "scale": np.ones(WIDTH, np.float32),
        "bias": np.zeros(WIDTH, np.float32),
        "norm_gate": np.zeros(1, np.float32),
        "sigma": np.zeros(1, np.float32),
        "gate": np.ones(WIDTH, np.float32),
    }
    assert set(params) == LEARNED[name]
    for key, value in params.items():
        np.testing.assert_array_equal(value, start[key], err_msg=key)


def test_layernorm_survives_a_large_mean():
    """As in the residual stream of norm-free blocks; E[x²] - E[x]² would lose all digits here."""
    x = np.random.default_rng(0).normal(0.0, 1.0, (4, WIDTH)) + 3e4
    x = x.astype(np.float32)
    params = random_parameters("layernorm")
    y = module("layernorm").apply({"params": params}, jnp.asarray(x))
    expected = formula("layernorm", *jax.tree.map(np.float64, (x, params)), 1e-5)
    np.testing.assert_allclose(y, expected, rtol=0, atol=0.01)


def test_invariances():
    """Shift and scale leave a layer norm as it is, scale an RMS norm; no epsilon worth the name."""
    x = jnp.asarray(np.random.default_rng(2).normal(size=(3, WIDTH)), jnp.float32)

    def change(name, other):
        apply = lambda x: module(name, 1e-12).apply({"params": random_parameters(name)}, x)  # noqa: E731
        return float(jnp.abs(apply(other) - apply(x)).max())

    assert change("layernorm", 3 * x + 2) < 1e-5
    assert change("rmsnorm", 3 * x) < 1e-5
    assert change("rmsnorm", x + 2) > 0.5
    assert change("dyt", 3 * x) > 0.5


@pytest.mark.parametrize("name", sorted(NORMALIZATIONS))
def test_sixteen_bit_inputs_are_normalized_in_float32(name):
    """Squares of 300 overflow float16; the result is as exact as its type."""
    x = (300 * np.random.default_rng(3).normal(size=(3, WIDTH))).astype(np.float16)
    params = random_parameters(name)
    y = module(name, dtype=jnp.float16).apply({"params": params}, jnp.asarray(x))
    assert y.dtype == jnp.float16
    expected = formula(name, *jax.tree.map(np.float64, (x, params)), 1e-5)
    np.testing.assert_allclose(y, expected, rtol=2e-3, atol=2e-3)


def derivative(name, x, p, epsilon, cotangent):
    """The cotangent of x, by hand: 1 / size times what is orthogonal to the normalized x."""
    if name == "none":
        return cotangent
    if name in POINT_FUNCTIONS:
        with np.errstate(over="ignore", under="ignore"):
            slope = SLOPES[name](p["alpha"] * x + p.get("shift", 0.0))
        return p["alpha"] * p["scale"] * slope * cotangent
    if name == "evonorm_s0":
        sigmoid, centred = logistic(p["gate"] * x), x - x.mean(-1, keepdims=True)
        size = np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
        cotangent = p["scale"] * cotangent
        with np.errstate(over="ignore", invalid="ignore"):
            slope = sigmoid + p["gate"] * x * sigmoid * (1 - sigmoid)
        gated = cotangent * x * sigmoid / size
        return (cotangent * slope - gated.mean(-1, keepdims=True) * centred / size) / size
    known = ("layernorm", "rmsnorm", "frozen_layernorm")
    assert name in known, f"{name} needs a derivative here"
    if name == "layernorm":
        x = x - x.mean(-1, keepdims=True)
    size = np.sqrt((x**2).mean(-1, keepdims=True) + epsilon)
    y, cotangent = x / size, p["scale"] * cotangent
    if name == "frozen_layernorm":
        return (cotangent - cotangent.mean(-1, keepdims=True)) / p["sigma"]
    if name == "layernorm":
        cotangent = cotangent - cotangent.mean(-1, keepdims=True)
    return (cotangent - y * (y * cotangent).mean(-1, keepdims=True)) / size


@pytest.mark.parametrize("name", sorted(NORMALIZATIONS))
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_value_and_derivative_at_every_size(name, dtype):
    """Up to 1e18, whose squares float32 can add up; in float16 that is the whole range."""
    limits = jnp.finfo(dtype)
    largest = min(1e18, float(limits.max) / 4)
    rng = np.random.default_rng(4)
    sizes = np.geomspace(float(limits.tiny), largest, 60)[:, None]
    x = jnp.asarray(sizes * rng.normal(size=(60, WIDTH)), dtype)
    cotangent = jnp.asarray(rng.normal(size=x.shape), dtype)
    params = random_parameters(name)
    norm = lambda x: module(name, dtype=dtype).apply({"params": params}, x)  # noqa: E731
    y, backward = jax.vjp(norm, x)
    exact, cotangent64, params64 = jax.tree.map(np.float64, (x, cotangent, params))
    tolerance = {"rtol": 4 * float(limits.eps), "atol": 4 * float(limits.eps)}
    expected = formula(name, exact, params64, 1e-5)
    # What grows with its input is as exact as the largest of its row, from which a mean is taken.
    row = np.abs(expected).max(-1, keepdims=True) if name == "frozen_layernorm" else 1.0
    np.testing.assert_allclose(np.float64(y) / row, expected / row, **tolerance)
    slope = derivative(name, exact, params64, 1e-5, cotangent64)
    found = np.float64(backward(cotangent)[0])
    # What cancels is as exact as its terms: the largest of the row, or 1 where f saturates.
    size = np.abs(slope).max(-1, keepdims=True) + (1.0 if name in POINT_FUNCTIONS else 1e-6)
    np.testing.assert_allclose(found / size, slope / size, **tolerance)


@pytest.mark.parametrize("name", ["layernorm", "rmsnorm"])
def test_input_and_scale_are_all_that_is_kept_for_the_derivative(name):
    x = jnp.ones((2, 3, WIDTH))
    params = {"params": random_parameters(name)}
    _, backward = jax.vjp(module(name).apply, params, x)
    assert sum(kept.size for kept in jax.tree.leaves(backward)) == x.size + WIDTH


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        (1, [0.6538760554, 1.5756114102, 2.5560143774, 3.5133452896]),
        (2, [1.4620879158, 3.5231178503, 5.7153304555, 7.8559532028]),
    ],
)
def test_evonorm_by_groups_of_features(groups, expected):
    x = jnp.asarray([[1.0, 2.0, 3.0, 4.0]])
    norm = EvoNorm(1e-5, jnp.float32, groups)
    params = norm.init(jax.random.key(0), x)["params"]
    np.testing.assert_allclose(norm.apply({"params": params}, x), [expected], rtol=1e-6)
    halves = norm.apply({"params": params | {"gate": jnp.zeros(4)}}, x)
    deviation = np.sqrt((1.25 if groups == 1 else 0.25) + 1e-5)
    np.testing.assert_allclose(halves, np.asarray(x) / (2 * deviation), rtol=1e-6)


@pytest.mark.parametrize("name", [*POINT_FUNCTIONS])
@pytest.mark.parametrize("mode", [jax.grad, jax.jacfwd])
def test_the_derivative_at_zero(name, mode):
    function = FUNCTIONS[name]
    assert float(mode(function)(0.0)) == pytest.approx(float(SLOPES[name](0.0)))
    assert float(function(0.0)) == 0.0
