"""A causal test of linearity: the loss when activations are replaced by their best linear fits.

R² measures how linear an activation is on average; this measures whether the model needs the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from nfllm.analysis import LinearFit
from nfllm.analysis.shown import shown_in_a_line
from nfllm.data.batches import Batch
from nfllm.measure.labelled import labelled
from nfllm.measure.merging import merge_across_processes, of_this_process
from nfllm.model.decoder import Decoder
from nfllm.model.mlp import TwoLayerMlp
from nfllm.model.parameters import Params
from nfllm.training.loss import count_targets, next_token_loss

_FIT = "linear_fit"


@shown_in_a_line
class LinearReplacement(NamedTuple):
    """Mean losses in nats per target."""

    loss: float
    """Of the original model."""
    layer_loss: np.ndarray
    """`[L]`, with only the activation of that layer replaced."""
    early_loss: float
    """With the activations of the first L // 2 layers replaced."""
    late_loss: float
    """With those of all other layers replaced."""
    all_loss: float
    """With the activations of all layers replaced: every MLP is a linear map."""
    num_targets: int


def replace_by_linear(
    model: Decoder,
    params: Params,
    batches: Iterable[Batch],
    fit: LinearFit,
    *,
    put: Callable[[np.ndarray], jax.Array] = jnp.asarray,
) -> LinearReplacement:
    """Loss over `batches` with `slope * pre + intercept` in place of each layer's activation.

    Args:
      model: the model.
      params: its parameters.
      batches: token ids and labels, each [B, T]. With several processes, each passes its share.
      fit: slope and intercept of each layer, [L]: `analyze(...)["linear_fit"]`.
      put: places arrays on devices.

    Returns:
      The losses, the same on every process.

    Raises:
      ValueError: the MLPs have no activation, or a gate; the fit does not have one line for each
        layer with an MLP; there is no target; or a token id or label is outside the vocabulary.

    Example:
      >>> import nfllm
      >>> run = nfllm.load_run("runs/default")
      >>> model, params, batches = run.model, run.params, run.validation_batches()
      >>> fit = nfllm.analyze(model, params, batches, ["linear_fit"])["linear_fit"]
      >>> replaced = replace_by_linear(model, params, batches, fit)
      >>> cost_L = replaced.layer_loss - replaced.loss  # nats per target
    """
    num_layers = model.config.num_mlp_layers
    if not model.config.has_hidden_layers:
        raise ValueError(f"model.mlp={model.config.mlp!r} has no activation to replace")
    if model.config.mlp == "gated":
        raise ValueError(
            "with model.mlp='gated', mlp_post is the product of activation and gate, so the fit is "
            "not of the activation alone; use model.mlp='two_layer'"
        )
    slope_L, intercept_L = (np.asarray(x, np.float32) for x in (fit.slope, fit.intercept))
    if slope_L.shape != (num_layers,) or intercept_L.shape != (num_layers,):
        raise ValueError(
            f"fit: expected slope and intercept of shape ({num_layers},), one for each layer, got "
            f"{slope_L.shape} and {intercept_L.shape}"
        )
    early_L = np.arange(num_layers) < num_layers // 2
    together = np.stack([early_L, ~early_L, np.ones(num_layers, bool)])
    none, each = np.zeros((1, num_layers), bool), np.eye(num_layers, dtype=bool)
    chosen = jnp.asarray(np.concatenate([none, each, together]))

    @jax.jit
    def losses(params: Params, tokens_BT: jax.Array, labels_BT: jax.Array) -> jax.Array:
        def loss(replaced_L: jax.Array) -> jax.Array:
            line: dict[str, ArrayLike] = {"slope": slope_L, "intercept": intercept_L}
            line["replaced"] = replaced_L
            logits_BTV = _apply_replaced(model, params, line, tokens_BT)
            return next_token_loss(logits_BTV, labels_BT)

        return jax.lax.map(loss, chosen)

    params = of_this_process(params)
    sums = _Sums(np.zeros(len(chosen)), np.int64(0))
    for batch in labelled(batches, model.vocab_size):
        tokens, labels = put(np.asarray(batch.tokens)), put(np.asarray(batch.labels))
        loss = np.asarray(losses(params, tokens, labels), np.float64)
        sums = sums.merge(_Sums(loss, np.int64(count_targets(labels))))
    sums = merge_across_processes({"sums": sums})["sums"]
    if sums.num_targets == 0:
        raise ValueError("there is no target: batches is empty, or has no label")
    mean = sums.loss / sums.num_targets
    early, late, every = map(float, mean[-3:])
    return LinearReplacement(float(mean[0]), mean[1:-3], early, late, every, int(sums.num_targets))


class _Sums(NamedTuple):
    loss: np.ndarray
    num_targets: np.int64

    def merge(self, other: _Sums) -> _Sums:
        return _Sums(self.loss + other.loss, self.num_targets + other.num_targets)


def _apply_replaced(
    model: Decoder, params: Params, line: Mapping[str, ArrayLike], tokens_BT: jax.Array
) -> jax.Array:
    """Logits, with the line in place of the activation where `replaced` is true.

    The line is passed as an additional leaf of the MLPs' parameters, so that the scan over layers
    gives each layer its own.
    """

    def swap(
        call: Callable[..., jax.Array],
        args: tuple[jax.Array, ...],
        kwargs: Mapping[str, jax.Array],
        context: nn.module.InterceptorContext,
    ) -> jax.Array:
        post = call(*args, **kwargs)
        if not isinstance(context.module, TwoLayerMlp) or context.method_name != "activate":
            return post
        own: dict[str, jax.Array] = context.module.get_variable("params", _FIT)
        line = own["slope"] * args[0] + own["intercept"]
        return jnp.where(own["replaced"], line.astype(post.dtype), post)

    mlp = {**params["blocks"]["mlp"], _FIT: line}
    variables = {"params": {**params, "blocks": {**params["blocks"], "mlp": mlp}}}
    with nn.intercept_methods(swap):
        return cast(jax.Array, model.apply(variables, tokens_BT))
