import json
import math
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_parts import make_parts, random_batch, small_config

from nfllm.config import ConfigError
from nfllm.data.batches import Batch
from nfllm.trainer.placement import Placement


def _train(config, num_devices, steps=4):
    parts = make_parts(config)
    parallel = Placement(config, jax.devices()[:num_devices])
    state = parallel.init(parts.init, jax.random.key(0))
    step = parallel.train_step(parts.train_step)
    losses = []
    for number in range(steps):
        state, metrics = step(state, parallel.put_train(random_batch(number)))
        losses.append((float(metrics.loss_nats), float(metrics.grad_norm)))
    return parallel, state, np.asarray(losses)


@pytest.mark.parametrize("strategy", [pytest.param("pmap", marks=pytest.mark.slow), "fsdp"])
def test_four_devices_give_the_losses_of_one(strategy):
    _, one, losses_of_one = _train(small_config(), 1)
    config = small_config(parallel={"strategy": strategy}, training={"gradient_accumulation": 2})
    _, four, losses_of_four = _train(config, 4)
    np.testing.assert_allclose(losses_of_four, losses_of_one, rtol=2e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), four.params, one.params)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["pmap", "fsdp"])
def test_power_iteration_does_not_depend_on_the_devices(strategy):
    """The vector that a step stores is a parameter that all devices and micro-batches agree on."""
    sigma = {"weight_reparametrization": "sigma"}
    _, one, losses_of_one = _train(small_config(model=sigma), 1)
    parallel, training = {"strategy": strategy}, {"gradient_accumulation": 2}
    config = small_config(model=sigma, parallel=parallel, training=training)
    _, four, losses_of_four = _train(config, 4)
    np.testing.assert_allclose(losses_of_four, losses_of_one, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), four.params, one.params)


@pytest.mark.slow
def test_dropout_does_not_depend_on_the_devices():
    dropout = {"embedding_dropout": 0.3, "attention_dropout": 0.2}
    _, _, losses_of_one = _train(small_config(model=dropout), 1)
    _, _, losses_of_four = _train(small_config(model=dropout), 4)
    np.testing.assert_allclose(losses_of_four, losses_of_one, rtol=2e-6)


def test_fsdp_splits_parameters_and_optimizer_state():
    config = small_config(parallel={"strategy": "fsdp"})
    parallel, state, _ = _train(config, 4, steps=1)
    kernel = state.params["blocks"]["mlp"]["in_kernel"]
    assert kernel.shape == (2, 16, 64)
    assert kernel.addressable_shards[0].data.shape == (2, 16, 16)
    arrays = jax.tree.leaves((state.params, state.opt_state))
    held = held_by_the_first_device(arrays)
    whole = sum(x.nbytes for x in arrays)
    replicated = sum(x.nbytes for x in arrays if x.sharding.is_fully_replicated)
    assert held == (whole - replicated) // 4 + replicated
    assert replicated < whole / 100
    assert parallel.num_devices == 4


EIGHT_DEVICES = """
import json, sys
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
sys.path[:0] = json.loads(sys.argv[2])
from test_parallel import _train, held_by_the_first_device
from training_parts import small_config
for strategy in ("pmap", "fsdp"):
    _, state, losses = _train(small_config(parallel={"strategy": strategy}), 8)
    arrays = jax.tree.leaves((state.params, state.opt_state))
    replicated = sum(x.nbytes for x in arrays if x.sharding.is_fully_replicated)
    print(json.dumps([held_by_the_first_device(arrays), replicated, losses.tolist()]))
"""


def held_by_the_first_device(arrays):
    """Bytes, as its own shards say."""
    shards = [shard for x in arrays for shard in x.addressable_shards]
    return sum(shard.data.nbytes for shard in shards if shard.device == jax.devices()[0])


@pytest.mark.slow
def test_on_eight_devices_fsdp_holds_an_eighth_and_has_the_losses_of_pmap(compilation_cache):
    command = [sys.executable, "-c", EIGHT_DEVICES, compilation_cache, json.dumps(sys.path)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    (whole, all_of_it, pmap_losses), (held, replicated, fsdp_losses) = map(json.loads, lines)
    # Parameters and two moments of 7,168 float32, of which all but two counters are replicated.
    assert whole == all_of_it == 3 * 4 * 7168 + replicated
    assert replicated == 8
    assert held == 3 * 4 * 7168 // 8 + replicated
    np.testing.assert_allclose(fsdp_losses, pmap_losses, rtol=2e-6)


def test_fsdp_sends_parameters_and_never_activations():
    # Sizes at which the compiler, left alone, cuts the residual stream along D.
    sequences, length, width = 20, 24, 32
    config = small_config(
        model={"context_length": length, "embed_dim": width, "num_layers": 1},
        parallel={"strategy": "fsdp"},
        training={"batch_size": sequences},
    )
    parts = make_parts(config)
    parallel = Placement(config)
    state = jax.eval_shape(parts.init, jax.random.key(0))
    ids = jax.ShapeDtypeStruct((1, sequences, length), jnp.int32)
    program = (
        parallel.train_step(parts.train_step).lower(state, Batch(ids, ids)).compile().as_text()
    )
    sent = re.findall(r" = (.*?) (?:all-|reduce-scatter|collective-permute)\S*\(", program)
    shapes = [shape for result in sent for shape in re.findall(r"\w+\[([\d,]*)\]", result)]
    sizes = [[int(n) for n in shape.split(",") if n] for shape in shapes]
    assert max(map(math.prod, sizes)) == width * 4 * width  # a matrix of the MLP
    assert not any(sequences in shape for shape in sizes)


@pytest.mark.parametrize("strategy", ["pmap", "fsdp"])
def test_the_old_state_is_reused_and_the_step_is_compiled_once(strategy, caplog):
    config = small_config(parallel={"strategy": strategy})
    parts = make_parts(config)
    parallel = Placement(config)
    state = parallel.init(parts.init, jax.random.key(0))
    step = parallel.train_step(parts.train_step)
    with jax.log_compiles(), caplog.at_level("WARNING", "jax._src.interpreters.pxla"):
        for number in range(3):
            old = state
            state, _ = step(state, parallel.put_train(random_batch(number)))
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old.params))
    compiled = [r.message for r in caplog.records if "Compiling" in r.message]
    assert len(compiled) == 1, compiled


@pytest.mark.parametrize("strategy", ["pmap", "fsdp"])
def test_evaluation_sums_over_all_devices(strategy):
    config = small_config(parallel={"strategy": strategy})
    parts = make_parts(config)
    params = parts.init(jax.random.key(0)).params
    expected = parts.eval_step(params, random_batch(0))
    parallel = Placement(config)
    sums = parallel.eval_step(parts.eval_step)(params, parallel.put_eval(random_batch(0)))
    np.testing.assert_allclose(sums.loss_nats, expected.loss_nats, rtol=1e-6)
    assert int(sums.num_targets) == int(expected.num_targets) == 8 * 11


def test_a_batch_that_does_not_divide_is_named_with_one_that_does():
    config = small_config(training={"batch_size": 10})
    with pytest.raises(ConfigError, match=r"training.batch_size=10 .* 4 devices; .* such as 8"):
        Placement(config)
    config = small_config(training={"batch_size": 12, "gradient_accumulation": 2})
    with pytest.raises(ConfigError, match=r"2 micro-batches on 4 devices; .* such as 16"):
        Placement(config)
    config = small_config(evaluation={"batch_size": 6})
    with pytest.raises(ConfigError, match=r"evaluation.batch_size=6 "):
        Placement(config)
