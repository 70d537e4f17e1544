"""A tiny model with its optimizer and step, for tests of training."""

import dataclasses
from typing import Any

import numpy as np

from nfllm.config import Config, get_config
from nfllm.data.batches import Batch
from nfllm.training.build import Built, build

VOCAB_SIZE = 50

_SMALL = {
    "model": {"num_layers": 2, "num_heads": 2, "embed_dim": 16, "context_length": 12},
    "training": {"steps": 20, "batch_size": 8, "gradient_accumulation": 1},
    "evaluation": {"batch_size": 8},
    "optimizer": {"warmup_steps": 2},
}


def small_config(**changes: dict[str, Any]) -> Config:
    """The default config, small; `changes` are sections of keys."""
    config = Config.from_dict(get_config())
    sections = {
        name: {**_SMALL.get(name, {}), **changes.get(name, {})} for name in {*_SMALL, *changes}
    }
    changed = {
        name: dataclasses.replace(getattr(config, name), **section)
        for name, section in sections.items()
    }
    return dataclasses.replace(config, **changed)


def make_parts(config: Config) -> Built:
    return build(config, VOCAB_SIZE)


def random_batch(seed: int, sequences: int = 8, length: int = 12) -> Batch:
    tokens = np.random.RandomState(seed).randint(0, VOCAB_SIZE, (sequences, length))
    return Batch(tokens.astype(np.int32), tokens.astype(np.int32))
