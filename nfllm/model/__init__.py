"""The decoder: embedding, blocks with swappable normalization and activation, output head."""

from nfllm.model.capture import Captured, capture
from nfllm.model.decoder import Decoder

__all__ = ["Captured", "Decoder", "capture"]
