"""Registration of the user's own metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import jax
import jax.numpy as jnp

from nfllm.config import ConfigError, ModelConfig
from nfllm.config.derived import Site
from nfllm.measure.metrics import METRICS, Metric, Observed
from nfllm.model.capture import Captured, site_shapes
from nfllm.model.decoder import Decoder
from nfllm.model.register import caller, is_known

_TINY = ModelConfig(num_layers=2, num_heads=2, embed_dim=4, context_length=3)


def register_analysis(
    name: str,
    of: Callable[[Observed], Any],
    result: Callable[[Any], Any] = lambda state: state,
    *,
    stays_on_device: bool = False,
) -> None:
    """Makes `name` a metric of `nfllm.analyze`.

    Args:
      name: a name that no other metric has.
      of: maps a batch to a state with a method `merge`, such as `nfllm.analysis.Moments`, or to a
        dict of such states; it runs under `jit`.
      result: computes the result from the merged state, on the host.
      stays_on_device: whether states are merged on the device, in single precision; for large
        states.

    Raises:
      ConfigError: the name is taken, `of` cannot be traced, or its states have no `merge`.

    Example:
      >>> import jax.numpy as jnp, nfllm
      >>> nfllm.register_analysis(
      ...     "largest_residual",  # [L+1], its mean, minimum and maximum over sequences
      ...     lambda x: nfllm.analysis.Moments.of(jnp.abs(x.captured.residual).max((2, 3)), axis=1),
      ... )
    """
    source = caller()
    what = f"metric {name!r}"
    # The same line may register another function, such as a closure over another value.
    is_known("metric", {n: metric.source for n, metric in METRICS.items()}, name, source)
    try:
        state = jax.eval_shape(lambda: of(_batch()))
    except Exception as error:
        line = (str(error).strip().splitlines() or [""])[0]
        raise ConfigError(f"{what} fails on a batch: {type(error).__name__}: {line}") from error
    for part in state.values() if isinstance(state, dict) else [state]:
        if not callable(getattr(part, "merge", None)):
            raise ConfigError(
                f"{what} gives a {type(part).__name__}, which has no method merge; give a state of "
                "nfllm.analysis, such as Moments.of(values, axis=1), or a dict of them"
            )
    METRICS[name] = Metric(name, of, result, stays_on_device, source)


def _batch() -> Observed:
    """A batch of three sequences, for tracing."""
    tokens_BT = jnp.zeros((3, _TINY.context_length), jnp.int32)
    shapes = site_shapes(Decoder(_TINY, 5), tokens_BT)
    sites: dict[str, Any] = {site: jnp.zeros(shape) for site, shape in shapes.items()}
    logits_BTV = jnp.zeros((*tokens_BT.shape, 5))
    # As of a model with a point function at every site.
    shares = {
        site: jnp.zeros((3,) if site in ("embedding", "final") else (_TINY.num_layers, 3))
        for site in get_args(Site)
    }
    return Observed(Captured(**sites, logits=logits_BTV, saturation=shares), tokens_BT)
