"""Configurations of the section `data`, and small corpora on disk, for the tests of nfllm.data."""

import json
from pathlib import Path
from typing import Any

from nfllm.config import Config, DataConfig, get_config


def data_config(data_dir: Path | str, **changes: Any) -> DataConfig:
    """The default section `data` with its cache under `data_dir` and some keys changed."""
    values = get_config().to_dict()
    values["data"] |= {"data_dir": str(data_dir), **changes}
    return Config.from_dict(values).data


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def words(number: int, count: int = 60) -> str:
    """A text that no other number gives."""
    return " ".join(f"w{number}_{position}" for position in range(count))
