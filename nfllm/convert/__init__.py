"""Conversion from and to Hugging Face checkpoints of GPT-2, GPT-NeoX and Llama.

It works in memory (`load_checkpoint`, `save_checkpoint`) or between directories (`convert`, and
`python -m nfllm.convert SRC DST`).
"""

from nfllm.convert.foreign import ConversionError
from nfllm.convert.huggingface import Checkpoint, load_checkpoint, save_checkpoint
from nfllm.convert.run_directory import convert

__all__ = ["Checkpoint", "ConversionError", "convert", "load_checkpoint", "save_checkpoint"]
