"""From a configuration to windows of tokens, prepared once and opened from the cache afterwards."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from typing import Any

from absl import logging
from etils import epath

from nfllm.config import ConfigError, DataConfig
from nfllm.config.paths import make_writable, user_path
from nfllm.data import cache, corpora, coverage, prepare, separators
from nfllm.data.records import printable
from nfllm.data.splits import larger_split
from nfllm.data.tokenizer import Tokenizer
from nfllm.data.tokens import TokenFile
from nfllm.data.windows import Windows

_SPLITS = ("train", "validation")
_TOKEN_FILES = [f"{split}.{kind}" for split in _SPLITS for kind in ("tokens", "offsets")]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Training and validation windows of one corpus.

    Attributes:
      tokenizer: the tokenizer of the corpus.
      ignored_id: the token that is never a target (`data.mask_end_of_text`); None: any may be.
      train: training windows.
      validation: validation windows; no document occurs in both.
      fingerprint: SHA-256 over texts, tokens, tokenizer, split and windows; hosts with equal
        fingerprints see equal batches.
      directory: where tokens and tokenizer are kept.
      card: the corpus card, JSON-able: sources, counts, licences, content hashes.
    """

    tokenizer: Tokenizer
    ignored_id: int | None
    train: Windows
    validation: Windows
    fingerprint: str
    directory: epath.Path
    card: dict[str, Any]


def data_directory(config: DataConfig) -> epath.Path:
    """Where prepared corpora and tokens are kept.

    Raises:
      ConfigError: `data.data_dir` cannot be used as a path, or the default has no home directory.
    """
    chosen = config.data_dir
    root = corpora.default_data_dir() if chosen is None else user_path(chosen, "data.data_dir")
    if (name := printable(os.fspath(root))) != os.fspath(root):
        raise ConfigError(
            f"data.data_dir={name} is not valid UTF-8, which TFDS needs; set another folder"
        )
    return root


def load(config: DataConfig, context_length: int, *, progress: bool = False) -> Dataset:
    """Opens the dataset of `config`; the first call prepares corpus, tokenizer and token files.

    Args:
      config: the section `data` of a configuration.
      context_length: tokens per window.
      progress: show progress bars while preparing.

    Returns:
      The dataset, its tokens memory-mapped.

    Raises:
      ConfigError: there is no such corpus, the configuration does not fit it, a split would be
        without a window, or `data.data_dir` cannot be written.
      MalformedRecordError: a record cannot be read and `config.malformed` is "error".
      OSError: the disk is full; incomplete files are removed.
    """
    root = data_directory(config)
    corpus = corpora.open_corpus(config, root)
    directory = root / "tokens" / prepare.cache_name(config, corpus)
    manifest = cache.read_manifest(directory)
    if manifest is None:
        make_writable(root, "data.data_dir")
        with cache.explain_full_disk(root), cache.staged(directory) as staging:
            prepare.prepare(config, corpus, staging, progress=progress)
        manifest = cache.read_manifest(directory)
        if manifest is None:
            raise OSError(f"{directory} changed while it was being written; start again")
    for remark in remarks(manifest["card"]):
        logging.warning("%s", remark)
    tokenizer = Tokenizer.load(directory / "tokenizer.json")
    windows = {
        split: Windows(
            TokenFile.open(directory, split, manifest["dtype"]), context_length, config.window
        )
        for split in _SPLITS
    }
    for split, found in windows.items():
        if not len(found):
            packed = ", set data.window to 'packed'" if config.window == "documents" else ""
            raise ConfigError(
                f"the {split} split has no window of model.context_length={context_length} tokens "
                f"(data.window={config.window!r}); add documents, lower the context length{packed}"
                f", or {larger_split(config)}"
            )
    facts = {
        "files": {name: manifest["files"][name] for name in _TOKEN_FILES},
        "texts": [manifest["card"]["splits"][split]["content_sha256"] for split in windows],
        "tokenizer": tokenizer.fingerprint,
        "window": config.window,
        "context_length": context_length,
    }
    fingerprint = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    card = {
        **manifest["card"],
        "sources": corpus.sources,  # another command may name the same files otherwise
        "windows": {
            "kind": config.window,
            "context_length": context_length,
            **{
                split: {"count": len(found), "tokens_kept": round(found.coverage, 6)}
                for split, found in windows.items()
            },
        },
        "fingerprint": fingerprint,
    }
    return Dataset(
        tokenizer=tokenizer,
        ignored_id=tokenizer.end_of_text_id if config.mask_end_of_text else None,
        train=windows["train"],
        validation=windows["validation"],
        fingerprint=fingerprint,
        directory=directory,
        card=card,
    )


def remarks(card: dict[str, Any]) -> list[str]:
    """Warnings about a corpus card, for readers of the results."""
    return [*separators.remarks(card), *coverage.remarks(card["tokenizer"]["coverage"])]
