"""Choices that depend only on speed, by backend: a new measurement changes only this file.

`benchmarks/NOTES.md` has the measurements. These choices change results only by rounding.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax


@dataclasses.dataclass(frozen=True)
class Tuning:
    """The choices for one backend.

    Attributes:
      attention: the meaning of `model.attention_implementation=auto`, if that can run.
      attention_from: shortest `model.context_length` for it; below, attention is explicit.
      scan_layers: the meaning of `model.scan_layers=None`.
      recompute_norms: whether LayerNorm and RMSNorm recompute their statistics for the derivative
        instead of keeping those of the forward pass.
      recompute_activations: whether smooth activations keep only their input for the derivative;
        otherwise the compiler chooses.
      plain_loss_bytes: float32 logits up to this size use JAX's own derivative of the loss.
      tile_logits: maximum number of logits at once with `training.loss_tile_rows=None`; None: all.
      tile_logits_16_bit: the same for 16-bit products.
      micro_batch_tokens: with `training.gradient_accumulation=None`, maximum number of tokens per
        device in a micro-batch; None: no micro-batches.
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


# The logits of a small micro-batch stay in a CPU's cache. Recomputing norms and GELU for the
# derivative reads less memory than keeping them. With 16-bit products the gradient of the logits
# exists in float32 and in 16 bits, which only tiles avoid.
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

# Tiles of the logits take 1.8% of the time of GPT-2 124M's step and save 19 GB of it (H100).
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

# Not measured: the usual choices.
_OTHER = dataclasses.replace(_GPU, attention="explicit", attention_from=0)

TUNINGS = {"cpu": _CPU, "gpu": _GPU}


def tuning() -> Tuning:
    """The choices for the backend that JAX uses."""
    return TUNINGS.get(jax.default_backend(), _OTHER)
