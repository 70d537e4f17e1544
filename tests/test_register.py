"""Parts of one's own: what is taken, what is refused, and what holds of every part there is."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_parts import make_parts, random_batch, small_config

import nfllm
from nfllm.config import NORMALIZATION_NAMES, ConfigError
from nfllm.config.files import before_devices
from nfllm.data.batches import Batch
from nfllm.model.activations import ACTIVATIONS
from nfllm.model.intermediates import record_update
from nfllm.model.normalizations import NORMALIZATIONS
from nfllm.model.parameters import constant_param
from nfllm.model.part_checks import check_apart, check_form, check_waiting
from nfllm.private_cost import DecoderShape, count_operations
from nfllm.training.optimizer import split_by_decay

pytestmark = pytest.mark.usefixtures("registries")


class Scale(nn.Module):
    """x times a learned gain per feature."""

    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        gain = self.param("gain", nn.initializers.ones, x.shape[-1:])
        return (gain[(None,) * (x.ndim - 1)] * x).astype(self.dtype)


class PositionMean(Scale):
    """What a batch norm would do."""

    @nn.compact
    def __call__(self, x):
        return (x - x.mean(1, keepdims=True)).astype(self.dtype)


class Wide(Scale):
    @nn.compact
    def __call__(self, x):
        return jnp.concatenate([x, x], -1).astype(self.dtype)


class Counting(Scale):
    @nn.compact
    def __call__(self, x):
        self.variable("batch_stats", "mean", jnp.zeros, ())
        return x.astype(self.dtype)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_every_activation_keeps_tokens_apart(name):
    function = lambda x: ACTIVATIONS[name](x, 0.1)  # noqa: E731
    check_form(name, function)
    check_apart(name, function)


@pytest.mark.parametrize("name", sorted(NORMALIZATION_NAMES))
def test_every_normalization_keeps_tokens_apart(name):
    module = NORMALIZATIONS[name](epsilon=1e-5, dtype=jnp.float32)
    x = jnp.ones((1, 2, 6))
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x)).get("params", {})
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(1, 0.3, leaf.shape).astype("f"), shapes)
    check_apart(name, lambda x: module.apply({"params": params}, x))


def register_swish(start=1.0):
    nfllm.register_activation(
        "swish",
        lambda x, beta: (x * jax.nn.sigmoid(beta * x)).astype(x.dtype),
        parameters={"beta": "undecayed"},
        start={"beta": start},
    )


def test_what_is_registered_trains_as_what_is_nfllms():
    """With beta at 1 it is SiLU, and a gain of 1 is no normalization: the logits are equal."""
    register_swish()
    nfllm.register_normalization(
        "gain_only", Scale, parameters={"gain": "undecayed"}, statistics="norm-free"
    )
    own = {"activation": "swish", "normalization": "gain_only"}
    batch = Batch(*(x[None] for x in random_batch(0)))
    parts, usual = (
        make_parts(small_config(model=model))
        for model in (own, {"activation": "silu", "normalization": "none"})
    )
    state = jax.jit(parts.init)(jax.random.key(0))
    model = parts.model.clone(config=dataclasses.replace(parts.model.config, scan_layers=True))
    found, expected = (
        jax.jit(model.apply)({"params": state.params}, batch.tokens[0])
        for model in (model, usual.model)  # the parameters that it does not have are passed over
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    beta = state.params["blocks"]["mlp"]["activation"]["beta"]
    np.testing.assert_array_equal(beta, [1, 1])
    decayed, undecayed = split_by_decay(state.params, decay_slopes=True)
    assert {"blocks.mlp.activation.beta", "blocks.attention_norm.gain"} <= set(undecayed)
    assert "blocks.mlp.in_kernel" in decayed
    trained, _ = jax.jit(parts.train_step)(state, batch)
    assert np.all(trained.params["blocks"]["mlp"]["activation"]["beta"] != 1)


def test_a_declared_kind_decides_what_decays():
    class DecayedScale(nn.Module):
        epsilon: float
        dtype: jnp.dtype

        @nn.compact
        def __call__(self, x):
            factor = self.param("factor", nn.initializers.ones, x.shape[-1:])
            return (factor[(None,) * (x.ndim - 1)] * x).astype(self.dtype)

    nfllm.register_normalization(
        "decayed_gain", DecayedScale, parameters={"factor": "decayed"}, statistics="frozen"
    )
    config = small_config(model={"normalization": "decayed_gain", "final_normalization": "none"})
    params = make_parts(config).init(jax.random.key(0)).params
    assert "blocks.mlp_norm.factor" in split_by_decay(params, decay_slopes=False)[0]
    assert config.model.statistics == "frozen"


class Running(Scale):
    """x over the size that inputs had at the last step."""

    @nn.compact
    def __call__(self, x):
        size = constant_param(self, "running_size", 1.0)
        record_update(self, "running_size", lambda: jnp.sqrt(jnp.mean(jnp.square(x))))
        return (x / jax.lax.stop_gradient(size)).astype(self.dtype)


def test_what_a_part_measures_takes_its_next_value_with_a_step():
    nfllm.register_normalization(
        "running", Running, parameters={"running_size": "statistic"}, statistics="frozen"
    )
    parts = make_parts(small_config(model={"final_normalization": "running"}))
    state = jax.jit(parts.init)(jax.random.key(0))
    batch = random_batch(0)
    residual = nfllm.capture(parts.model, state.params, batch.tokens).residual
    trained, _ = jax.jit(parts.train_step)(state, Batch(*(x[None] for x in batch)))
    expected = np.sqrt(np.mean(np.square(residual[-1])))
    np.testing.assert_allclose(trained.params["final_norm"]["running_size"], expected, rtol=1e-5)


def test_a_transform_of_logits_is_in_every_formulation():
    nfllm.register_attention_transform("double", lambda logits: 2 * logits)
    tokens_BT = random_batch(0).tokens
    found = []
    for implementation in ("explicit", "blocks"):
        for transform in ("double", "none"):
            config = small_config(
                model={"attention_transform": transform, "attention_implementation": implementation}
            )
            parts = make_parts(config)
            params = jax.tree.map(lambda x: 5 * x, parts.init(jax.random.key(0)).params)
            if transform == "none":  # twice the queries instead
                qkv = params["blocks"]["attention"]["qkv_kernel"]
                params["blocks"]["attention"]["qkv_kernel"] = qkv.at[:, :, 0].multiply(2)
            with jax.disable_jit():
                found.append(parts.model.apply({"params": params}, tokens_BT))
    for logits in found[1:]:
        np.testing.assert_allclose(logits, found[0], rtol=1e-4, atol=1e-4)
    shape = DecoderShape.from_config(small_config(model={"attention_transform": "double"}).model, 9)
    (priced,) = (o for o in count_operations(shape, 4) if "double" in o.name)
    assert (priced.elements, priced.primitives) == (2 * 2 * 4 * 4, None)
    with pytest.raises(ConfigError, match=r"needs attention logits, which model\.attention_im"):
        small_config(model={"attention_transform": "double", "attention_implementation": "xla"})


def test_a_metric_of_ones_own_is_measured():
    nfllm.register_analysis(
        "largest_residual",
        lambda x: nfllm.analysis.Moments.of(jnp.abs(x.captured.residual).max((2, 3)), axis=1),
        lambda state: state.maximum,
    )
    parts = make_parts(small_config())
    params = parts.init(jax.random.key(0)).params
    tokens_BT = random_batch(0).tokens
    found = nfllm.analyze(parts.model, params, [tokens_BT], ["largest_residual"])
    residual = nfllm.capture(parts.model, params, tokens_BT).residual
    np.testing.assert_allclose(
        found["largest_residual"], np.abs(residual).max((1, 2, 3)), rtol=1e-6
    )


def test_a_metric_may_read_the_saturation_of_a_site():
    nfllm.register_analysis(
        "final_saturation",
        lambda x: nfllm.analysis.Moments.of(x.captured.saturation["final"], axis=0),
    )
    parts = make_parts(small_config(model={"final_normalization": "dyt"}))
    params = parts.init(jax.random.key(0)).params
    tokens_BT = random_batch(0).tokens
    found = nfllm.analyze(parts.model, params, [tokens_BT], ["final_saturation"])
    expected = nfllm.capture(parts.model, params, tokens_BT).saturation["final"]
    np.testing.assert_allclose(found["final_saturation"].mean, np.mean(expected), rtol=1e-6)


def normalization(module=Scale, parameters=(("gain", "undecayed"),), statistics="norm-free"):
    nfllm.register_normalization("mine", module, parameters=dict(parameters), statistics=statistics)


REFUSED = {
    r"activation 'relu' is nfllm's own": lambda: nfllm.register_activation("relu", jnp.tanh),
    r"activation '1st': a name consists of": lambda: nfllm.register_activation("1st", jnp.tanh),
    r"activation 'mine' makes float32\[2, 4\] of float32\[2, 4, 6\]; it must keep shape": lambda: (
        nfllm.register_activation("mine", lambda x: x.mean(-1))
    ),
    r"activation 'mine' makes float32\[2, 4, 6\] of bfloat16\[2, 4, 6\]; .* \.astype": lambda: (
        nfllm.register_activation("mine", lambda x: x.astype(jnp.float32))
    ),
    r"activation 'mine' gives values that are not finite": lambda: nfllm.register_activation(
        "mine", jnp.sqrt
    ),
    r"activation 'mine' has a derivative that is not finite .* jnp.where": lambda: (
        nfllm.register_activation(
            "mine", lambda x: jnp.where(x > 0, jnp.sqrt(x), 0).astype(x.dtype)
        )
    ),
    r"activation 'mine' mixes positions": lambda: nfllm.register_activation(
        "mine", lambda x: x - x.mean(1, keepdims=True)
    ),
    r"activation 'mine' depends on where a token stands": lambda: nfllm.register_activation(
        "mine", lambda x: x * jnp.arange(x.shape[1], dtype=x.dtype)[None, :, None]
    ),
    r"activation 'mine' fails on float32\[2, 4, 6\]: TypeError": lambda: nfllm.register_activation(
        "mine", lambda x, beta: x * beta
    ),
    r"'beta' must be in parameters, and in start with a number": lambda: nfllm.register_activation(
        "mine", lambda x, beta: x * beta, parameters={"beta": "undecayed"}
    ),
    r"'often' of parameter 'beta' is no kind; choose from decayed, statistic, und": lambda: (
        nfllm.register_activation(
            "mine", lambda x, beta: x, parameters={"beta": "often"}, start={"beta": 1.0}
        )
    ),
    r"parameters called 'scale' are undecayed elsewhere, not decayed": lambda: (
        nfllm.register_activation(
            "mine", lambda x, scale: x, parameters={"scale": "decayed"}, start={"scale": 1.0}
        )
    ),
    r"statistics='none' must be one of norm-free, frozen, normalised": lambda: normalization(
        statistics="none"
    ),
    r"normalization 'mine' has a parameter 'gain' of no declared kind; give param": lambda: (
        normalization(parameters=())
    ),
    r"normalization 'mine' declares a parameter 'bias', but has gain": lambda: normalization(
        parameters=(("gain", "undecayed"), ("bias", "undecayed"))
    ),
    r"normalization 'mine' mixes positions": lambda: normalization(PositionMean, ()),
    r"normalization 'mine' makes float32\[2, 4, 12\] of float32\[2, 4, 6\]": lambda: normalization(
        Wide, ()
    ),
    r"normalization 'mine' has the collection 'batch_stats' beside": lambda: normalization(
        Counting, ()
    ),
    r"normalization 'mine': the factory must be a function of epsilon and dtype": lambda: (
        normalization(nn.Dense, ())
    ),
    r"attention transform 'mine' mixes positions: .* one entry": lambda: (
        nfllm.register_attention_transform("mine", lambda x: x - x.max(-1, keepdims=True))
    ),
    r"metric 'head_entropy' is nfllm's own": lambda: nfllm.register_analysis(
        "head_entropy", lambda x: x
    ),
    r"metric 'mine' gives a ShapeDtypeStruct, which has no method merge": lambda: (
        nfllm.register_analysis("mine", lambda x: x.captured.residual.mean())
    ),
    r"metric 'mine' fails on a batch: AttributeError": lambda: nfllm.register_analysis(
        "mine", lambda x: x.captured.nothing
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_is_refused_in_a_line(message):
    with pytest.raises(ConfigError, match=message) as found:
        REFUSED[message]()
    assert "\n" not in str(found.value)
    with pytest.raises(ConfigError, match="unknown activation 'mine'"):
        small_config(model={"activation": "mine"})
    with pytest.raises(ConfigError, match="unknown normalization 'mine'"):
        small_config(model={"normalization": "mine"})


def test_a_name_is_registered_once_but_its_line_may_run_again():
    for _ in range(2):
        register_swish()
    with pytest.raises(ConfigError, match=r"'swish' was registered by .*test_register\.py, line"):
        nfllm.register_activation("swish", jnp.tanh)


def test_a_line_that_runs_again_with_other_values_is_refused():
    """It would silently be the first function; in a loop over values, all models the first."""

    def register(factor, kind):
        def own(x):
            return own(x) if factor is None else (factor * x).astype(x.dtype)

        made = {
            "closure": own,
            "default": lambda x, factor=factor: (factor * x).astype(x.dtype),
            "partial": functools.partial(
                lambda x, factor: (factor * x).astype(x.dtype), factor=factor
            ),
            "jit": jax.jit(own),
        }[kind]
        nfllm.register_activation(f"scaled_{kind}", made)
        nfllm.register_attention_transform(f"scaled_{kind}", made)

    for kind in ("closure", "default", "partial", "jit"):
        register(2.0, kind)
        register(2.0, kind)
        with pytest.raises(ConfigError, match=r"by the same line with other values .*; give each"):
            register(3.0, kind)


def test_the_same_line_may_register_another_metric():
    """As that of a function which is called with other values."""

    def share_above(threshold):
        def share(x):
            return nfllm.analysis.Moments.of(x.captured.residual > threshold, axis=(0, 1, 2, 3))

        nfllm.register_analysis("share_above", share)

    parts = make_parts(small_config())
    params = parts.init(jax.random.key(0)).params
    means = []
    for threshold in (0.0, 1e9):
        share_above(threshold)
        found = nfllm.analyze(parts.model, params, [random_batch(0).tokens], ["share_above"])
        means.append(float(found["share_above"].mean))
    assert means[0] > 0 == means[1]


def test_a_derivative_that_rounds_otherwise_is_no_mixing():
    """The value that comes with a derivative is another program's: tanh differs in its last bit."""
    nfllm.register_attention_transform("soft_cap", lambda logits: 50 * jnp.tanh(logits / 50))


def test_before_there_are_devices_only_shapes_are_looked_at():
    """A config file runs before a command has split the CPU, or joined other hosts."""
    with before_devices():
        nfllm.register_activation("apart", jnp.tanh)
        nfllm.register_activation("mixing", lambda x: x - x.mean(1, keepdims=True))
        with pytest.raises(ConfigError, match="must keep shape"):
            nfllm.register_activation("mine", lambda x: x.mean(-1))
    parts = make_parts(small_config(model={"activation": "relu"}))
    for _ in range(2):
        with pytest.raises(ConfigError, match="activation 'mixing' mixes positions"):
            jax.jit(parts.init)(jax.random.key(0))
        with pytest.raises(ConfigError, match="activation 'mixing' mixes positions"):
            check_waiting()
