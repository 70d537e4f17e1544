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
      recompute_activations: smooth activations keep their input alone for the derivative; else the
        compiler chooses.
      plain_loss_bytes: float32 logits up to this size take JAX's own derivative of the loss.
      tile_logits: `training.loss_tile_rows=None` has at most so many logits at once; None: all.
      tile_logits_16_bit: the same where products are in 16 bits.
      micro_batch_tokens: `training.gradient_accumulation=None` splits a step into micro-batches of
        at most so many tokens a device; None: no split.
    """

    attention: Literal["explicit", "blocks", "xla", "cudnn"]
    attention_from: int
    scan_layers: bool
    recompute_norms: bool
    recompute_activations: bool
    plain_loss_bytes: int
    tile_logits: int | None
    tile_logits_16_bit: int | None
    micro_batch_tokens: int | None


# The logits of a small micro-batch stay in a CPU's cache. A derivative that computes norms and GELU
# again reads less memory than one that reads what was kept. In 16 bits the gradient of the logits
# is half a copy beside the whole one in float32, which only tiles avoid.
_CPU = Tuning(
    attention="blocks",
    attention_from=0,
    scan_layers=False,
    recompute_norms=True,
    recompute_activations=True,
    plain_loss_bytes=8 * 2**20,
    tile_logits=None,
    tile_logits_16_bit=2**20,
    micro_batch_tokens=256,
)

# With more than 2^31 logits at once, a loss or gradient of GPT-2 124M was not finite within its
# first steps on an H100. That their number was the cause is not known.
_GPU = Tuning(
    attention="cudnn",
    attention_from=512,
    scan_layers=False,
    recompute_norms=False,
    recompute_activations=False,
    plain_loss_bytes=8 * 2**20,
    tile_logits=2**29,
    tile_logits_16_bit=2**29,
    micro_batch_tokens=None,
)

# Not measured: what the field uses.
_OTHER = dataclasses.replace(_GPU, attention="explicit", attention_from=0)

TUNINGS = {"cpu": _CPU, "gpu": _GPU}


def tuning() -> Tuning:
    """The choices for the backend that JAX uses."""
    return TUNINGS.get(jax.default_backend(), _OTHER)
