"""Equal seeds are equal starts: what two models have in common starts the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from synthetic_runs import make_config

from nfllm.model import Decoder

pytestmark = pytest.mark.slow

SIZES = {
    "model.num_layers": 2,
    "model.num_heads": 2,
    "model.embed_dim": 16,
    "model.context_length": 8,
    "model.activation": "gelu",
}
CHANGES = [
    {"model.activation": "relu"},
    *(
        {"model.activation": "learnable_leaky_relu", "model.slope_sharing": sharing}
        for sharing in ("layer", "model", "untied_global")
    ),
    *({"model.normalization": name} for name in ("layernorm", "derf")),
    {"model.qk_normalization": "layernorm"},
    {"model.mlp_normalization": "evonorm_s0", "model.normalization": "isru"},
    {"model.embedding_scale": "learned"},
    {"model.attention_bias": "qk"},
    {"model.attention_bias": "all"},
    {"model.mlp_bias": True},
    {"model.tie_embeddings": False},
]


def start(changes: dict) -> dict[str, np.ndarray]:
    model = Decoder(make_config({**SIZES, **changes}).model, 11)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]
    paths = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path): np.asarray(value) for path, value in paths}


@pytest.fixture(scope="module")
def plain() -> dict[str, np.ndarray]:
    return start({})


@pytest.mark.exact
@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_what_is_added_changes_no_other_parameter(plain: dict, changes: dict) -> None:
    found = start(changes)
    common = found.keys() & plain.keys()
    assert "['blocks']['mlp']['in_kernel']" in common
    for name in common:
        np.testing.assert_array_equal(found[name], plain[name], err_msg=name)
    for name in found.keys() - plain.keys():
        if "slope" in name:
            assert np.all(found[name] == np.float32(0.01))
        elif name.endswith("bias']"):
            assert np.all(found[name] == 0)


def test_another_seed_is_another_start(plain: dict) -> None:
    model = Decoder(make_config(SIZES).model, 11)
    other = model.init(jax.random.key(1), jnp.zeros((1, 8), jnp.int32))["params"]
    kernel = np.asarray(other["blocks"]["mlp"]["in_kernel"])
    assert not np.any(kernel == plain["['blocks']['mlp']['in_kernel']"])
