"""What is chosen only because it is fast, by backend: a new measurement changes this file alone.

`benchmarks/NOTES.md` has the measurements. Nothing here changes a result in more than rounding.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax


@dataclasses.dataclass(frozen=True)
class Tuning:
    """The choices for one backend.

    Attributes:
      attention: what `model.attention_implementation=auto` is, where it can run.
      attention_from: shortest `model.context_length` for it; below, attention is explicit.
      scan_layers: what `model.scan_layers=None` is.
      recompute_norms: LayerNorm and RMSNorm compute their statistics again for the derivative,
        instead of keeping what the forward pass had.
      recompute_gelu: GELU keeps its input alone for the derivative; else the compiler chooses.
      plain_loss_bytes: float32 logits up to this size take JAX's own derivative of the loss.
      loss_tile_rows: what `training.loss_tile_rows=None` is; None: all positions at once.
      micro_batch_tokens: `training.gradient_accumulation=None` splits a step into micro-batches of
        at most so many tokens a device; None: no split.
    """

    attention: Literal["explicit", "blocks", "xla", "cudnn"]
    attention_from: int
    scan_layers: bool
    recompute_norms: bool
    recompute_gelu: bool
    plain_loss_bytes: int
    loss_tile_rows: int | None
    micro_batch_tokens: int | None


# The logits of a small micro-batch stay in a CPU's cache. A derivative that computes norms and GELU
# again reads less memory than one that reads what was kept.
_CPU = Tuning(
    attention="blocks",
    attention_from=0,
    scan_layers=False,
    recompute_norms=True,
    recompute_gelu=True,
    plain_loss_bytes=8 * 2**20,
    loss_tile_rows=None,
    micro_batch_tokens=256,
)

_GPU = Tuning(
    attention="cudnn",
    attention_from=128,
    scan_layers=False,
    recompute_norms=False,
    recompute_gelu=False,
    plain_loss_bytes=8 * 2**20,
    loss_tile_rows=None,
    micro_batch_tokens=None,
)

# Not measured: what the field uses.
_OTHER = dataclasses.replace(_GPU, attention="explicit", attention_from=0)

TUNINGS = {"cpu": _CPU, "gpu": _GPU}


def tuning() -> Tuning:
    """The choices for the backend that JAX uses."""
    return TUNINGS.get(jax.default_backend(), _OTHER)
