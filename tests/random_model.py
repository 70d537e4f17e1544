"""A small decoder with random parameters, made without compiling its initializer."""

from typing import Any

import jax
import numpy as np
from training_parts import make_parts, small_config

from nfllm.model.decoder import Decoder


def random_model(std: float, **model: Any) -> tuple[Decoder, Any]:
    """The model of `small_config(model=model)`; every parameter is normal with this deviation."""
    decoder = make_parts(small_config(model=model)).model
    shapes = jax.eval_shape(decoder.init, jax.random.key(0), np.zeros((1, 4), np.int32))["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jax.numpy.asarray(rng.normal(0, std, leaf.shape), leaf.dtype), shapes
    )
    return decoder, params
