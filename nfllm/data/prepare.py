"""Prepares a corpus once, in bounded memory: survey, split, tokenizer, token files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from absl import logging
from etils import epath

from nfllm.config import ConfigError, DataConfig, suggest
from nfllm.data import cache
from nfllm.data.corpora import Corpus
from nfllm.data.coverage import Coverage
from nfllm.data.records import MalformedRecordError
from nfllm.data.separators import Markers
from nfllm.data.splits import Assignment, Side, Survey, digest, uniform
from nfllm.data.tokenizer import Tokenizer, UnencodableTextError, bytes_tokenizer, train_bpe
from nfllm.data.tokens import TokenWriter, token_dtype

# Part of every cache's name; increase it when the same request would give different files.
_FORMAT = 2
_SPLITS = {Side.TRAIN: "train", Side.VALIDATION: "validation"}
# BPE is trained on a sample of about this size; a larger one would change few merges.
_TOKENIZER_BYTES = 100 << 20
_BATCH_CHARACTERS = 1 << 20

T = TypeVar("T")


def cache_name(config: DataConfig, corpus: Corpus) -> str:
    """Name of the directory for the tokens of `corpus` under `config`."""
    request = {
        "format": _FORMAT,
        "corpus": corpus.identity,
        "tokenizer": _tokenizer_request(config),
        "validation": [
            config.validation_split,
            config.validation_fraction,
            config.validation_field,
            config.validation_values,
        ],
    }
    key = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
    return f"{config.dataset.replace('/', '_').replace(':', '_')}-{key[:16]}"


def prepare(config: DataConfig, corpus: Corpus, staging: Path, *, progress: bool) -> None:
    """Writes tokenizer, token files and manifest of `corpus` into `staging`."""
    corpus.prepare(progress=progress)
    survey, markers = Survey(config), Markers()
    for record, validation in _bar(corpus.documents(), len(corpus), "documents", progress):
        markers.add(record.text)
        survey.add(record.text.encode(), record.fields, validation=validation)
    assignment = survey.assign()
    tokenizer = _make_tokenizer(config, corpus, assignment, progress)
    tokenizer.save(staging / "tokenizer.json")
    if shared := assignment.shared_documents():
        raise RuntimeError(f"{shared} validation documents occur in the training split")
    coverage = Coverage(tokenizer)
    try:
        splits = _write_tokens(corpus, assignment, tokenizer, coverage, staging, progress)
    except UnencodableTextError as error:
        raise ConfigError(f"data.tokenizer={config.tokenizer!r}: {error}") from error
    card = {
        **corpus.card(),
        "documents": assignment.counts(),
        "splits": splits,
        "held_out": {"field": config.validation_field, "values": assignment.held_out},
        "tokenizer": {
            "kind": config.tokenizer,
            "vocab_size": tokenizer.vocab_size,
            "fingerprint": tokenizer.fingerprint,
            "coverage": coverage.summary(),
            "markers": markers.summary(),
        },
    }
    dtype = token_dtype(tokenizer.vocab_size)
    cache.write_manifest(staging, {"dtype": dtype, "card": card})


def _tokenizer_request(config: DataConfig) -> str:
    if config.tokenizer == "bpe":
        return f"bpe {config.vocab_size}"
    if config.tokenizer == "bytes":
        return "bytes"
    return load_tokenizer(config.tokenizer).fingerprint


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a file that `data.tokenizer` names.

    Raises:
      ConfigError: there is no such file, or it is not a tokenizer.
    """
    path = epath.Path(name).expanduser()
    if not path.is_file():
        raise ConfigError(
            f"data.tokenizer={name!r} is neither a file nor a built-in tokenizer; "
            f"{suggest(name, ('bpe', 'bytes'))}"
        )
    try:
        return Tokenizer.load(path)
    except ValueError as error:
        raise ConfigError(f"data.tokenizer: {error}") from error


def _make_tokenizer(
    config: DataConfig, corpus: Corpus, assignment: Assignment, progress: bool
) -> Tokenizer:
    if config.tokenizer == "bytes":
        return bytes_tokenizer()
    if config.tokenizer != "bpe":
        return load_tokenizer(config.tokenizer)
    share = _TOKENIZER_BYTES / max(1, assignment.num_bytes(Side.TRAIN))

    def sample() -> Iterator[str]:
        documents = _bar(corpus.documents(), len(corpus), "tokenizer", progress)
        for index, (record, _) in enumerate(documents):
            chosen = share >= 1 or uniform(assignment.digest(index), "tokenizer") < share
            if assignment.sides[index] == Side.TRAIN and chosen:
                yield record.text

    tokenizer = train_bpe(sample(), config.vocab_size)
    if tokenizer.vocab_size < config.vocab_size:
        logging.warning(
            "the corpus is too small for data.vocab_size=%d: the tokenizer has %d tokens",
            config.vocab_size,
            tokenizer.vocab_size,
        )
    return tokenizer


def _write_tokens(
    corpus: Corpus,
    assignment: Assignment,
    tokenizer: Tokenizer,
    coverage: Coverage,
    staging: Path,
    progress: bool,
) -> dict[str, Any]:
    with contextlib.ExitStack() as stack:
        writers = {
            side: stack.enter_context(
                TokenWriter(staging, name, tokenizer.vocab_size, tokenizer.end_of_text_id)
            )
            for side, name in _SPLITS.items()
        }
        documents = _bar(corpus.documents(), len(corpus), "tokens", progress)
        for batch in _batches(documents, assignment):
            texts = [text for _, text in batch]
            encoded = tokenizer.encode_batch(texts)
            coverage.add(texts, encoded)
            for (side, text), ids in zip(batch, encoded, strict=True):
                writers[side].append([text.encode()], [ids])
        return {name: writers[side].statistics() for side, name in _SPLITS.items()}


def _batches(
    documents: Iterable[tuple[Any, bool]], assignment: Assignment
) -> Iterator[list[tuple[Side, str]]]:
    """Documents of both splits, about a megabyte at a time."""
    batch: list[tuple[Side, str]] = []
    size = 0
    for index, (record, _) in enumerate(documents):
        if digest(record.text.encode()) != assignment.digest(index):
            raise MalformedRecordError(f"document {index} changed while the corpus was being read")
        side = Side(assignment.sides[index])
        if side not in _SPLITS:
            continue
        batch.append((side, record.text))
        size += len(record.text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _bar(items: Iterable[T], total: int, what: str, shown: bool) -> Iterable[T]:
    from tqdm import tqdm

    interval = 0.2 if sys.stderr.isatty() else 10.0  # seconds; a log is not a terminal
    return tqdm(
        items, f"{what:>10}", total, unit=" documents", mininterval=interval, disable=not shown
    )
