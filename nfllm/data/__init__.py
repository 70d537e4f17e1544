"""Corpora, tokenizers, token files and batches.

dataset = nfllm.data.load(config.data, config.model.context_length)
batch = nfllm.data.batches.train_batch(dataset.train, seed=0, step=0, batch_size=16)
"""

from nfllm.data import batches
from nfllm.data.dataset import Dataset, load
from nfllm.data.tokenizer import Tokenizer
from nfllm.data.windows import Windows

__all__ = ["Dataset", "Tokenizer", "Windows", "batches", "load"]
