"""A configuration that trains in seconds: bytes of a few small Python files, two narrow layers."""

from pathlib import Path
from typing import Any

from nfllm.config import Config, get_config

_TINY = {
    "model.num_layers": 2,
    "model.num_heads": 2,
    "model.embed_dim": 16,
    "model.context_length": 32,
    "data.dataset": "python_source",
    "data.tokenizer": "bytes",
    "data.validation_fraction": 0.3,
    "training.steps": 8,
    "training.batch_size": 8,
    "training.log_every": 1,
    "training.compilation_cache": "",
    "evaluation.every": 0,
    "evaluation.batch_size": 8,
    "evaluation.max_windows": 20,
    "telemetry.every": 0,
    "telemetry.probe_windows": 4,
    "checkpoint.every": 0,
}


def make_corpus(folder: Path) -> Path:
    """Writes twenty small, distinct Python files."""
    folder.mkdir(parents=True)
    for number in range(20):
        body = "\n".join(f"    x = x * {number + line} + {line}" for line in range(12))
        (folder / f"f{number}.py").write_text(f"def f{number}(x):\n{body}\n    return x\n")
    return folder


def tiny_flags(corpus: Path, data_dir: Path, **changes: Any) -> dict[str, Any]:
    """Changes of the default config, as `{"section.key": value}`; `__` in a name is a dot."""
    named = {key.replace("__", "."): value for key, value in changes.items()}
    return {**_TINY, "data.sources": str(corpus), "data.data_dir": str(data_dir), **named}


def tiny_config(corpus: Path, data_dir: Path, **changes: Any) -> Config:
    """The config of `tiny_flags`, built and validated."""
    values = Config.from_dict(get_config()).to_dict()
    for key, value in tiny_flags(corpus, data_dir, **changes).items():
        section, name = key.split(".")
        values[section][name] = value
    return Config.from_dict(values)
