"""Compares a converted checkpoint with what transformers computed from the original."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from nfllm.convert import Checkpoint, gpt2, gpt_neox, llama
from nfllm.convert.foreign import TensorReader
from nfllm.model import Decoder, capture
from nfllm.training.loss import count_targets, next_token_loss

FORMATS = {"gpt2": gpt2, "gpt_neox": gpt_neox, "llama": llama}
NORMS = ("attention_norm", "mlp_norm")


def without_block_norms(checkpoint: Checkpoint) -> Checkpoint:
    """The same model, norm-free: the LayerNorms of its blocks are taken out."""
    params = checkpoint.params
    blocks = {name: value for name, value in params["blocks"].items() if name not in NORMS}
    config = dataclasses.replace(checkpoint.config, normalization="none")
    return Checkpoint(config, checkpoint.vocab_size, {**params, "blocks": blocks})


def check_outputs(checkpoint: Checkpoint, outputs: Mapping[str, np.ndarray]) -> None:
    """Asserts equal logits, attention, loss and gradients.

    Measured over all recordings: 3.4e-6, 9e-7, and 1.5e-6 of a gradient's largest entry.
    """
    model = Decoder(checkpoint.config, checkpoint.vocab_size)
    params = jax.tree.map(jnp.asarray, checkpoint.params)
    tokens_BT = jnp.asarray(outputs["tokens"])

    @jax.jit
    @jax.value_and_grad
    def loss_and_gradients(params: dict) -> jax.Array:
        logits_BTV = model.apply({"params": params}, tokens_BT)
        return next_token_loss(logits_BTV, tokens_BT) / count_targets(tokens_BT)

    captured = capture(model, params, tokens_BT)
    np.testing.assert_allclose(captured.logits, outputs["logits"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(captured.attention_probs, outputs["attention"], rtol=0, atol=4e-6)
    loss, gradients = loss_and_gradients(params)
    np.testing.assert_allclose(loss, outputs["loss"], rtol=1e-6)
    theirs = _gradients(checkpoint, outputs)
    assert jax.tree.structure(gradients) == jax.tree.structure(theirs)
    jax.tree.map_with_path(_check_gradient, gradients, theirs)


def _gradients(checkpoint: Checkpoint, outputs: Mapping[str, np.ndarray]) -> dict:
    """The recorded gradients in our layout."""
    recorded = {
        key.removeprefix("gradient/"): value
        for key, value in outputs.items()
        if key.startswith("gradient/")
    }
    reader = TensorReader(recorded, "the recorded gradients")
    form = FORMATS[checkpoint.config.architecture]
    params = form.read_tensors(reader, checkpoint.config, checkpoint.vocab_size)
    reader.finish()
    read = Checkpoint(checkpoint.config, checkpoint.vocab_size, params)
    norm_free = checkpoint.config.normalization == "none"
    return (without_block_norms(read) if norm_free else read).params


def _check_gradient(path: tuple, ours: jax.Array, theirs: np.ndarray) -> None:
    # Relative to the tensor's largest entry.
    tolerance = 1e-5 * np.abs(theirs).max()
    name = jax.tree_util.keystr(path)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance, err_msg=name)
