"""Loss of a model on any text, in nats per token and in bits per byte (for any tokenizer)."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nfllm.analysis import Interval, bootstrap_interval
from nfllm.config import IGNORED_LABEL
from nfllm.data.batches import Batch, as_batches
from nfllm.data.dataset import Dataset
from nfllm.data.tokens import TokenFile, token_dtype
from nfllm.measure.labelled import labelled
from nfllm.model.decoder import Decoder
from nfllm.model.parameters import Params
from nfllm.model.token_ids import check_token_ids
from nfllm.run import Run
from nfllm.rundir.perplexity import perplexity
from nfllm.training.loss import count_targets, next_token_loss


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How well a model predicts a text.

    Attributes:
      loss_nats: mean of -log p(token), over all targets of all documents.
      interval_nats: its 95% interval, a bootstrap over documents weighted by their targets; NaN
        with fewer than 6 documents.
      perplexity: exp(loss_nats).
      bits_per_byte: sum of -log2 p(token) over all targets, divided by `num_bytes`; None for
        batches of tokens, whose text is not known.
      num_targets: number of predicted tokens.
      num_bytes: number of UTF-8 bytes that the targets decode to.
      num_documents: number of documents with a target; for batches, of windows.
    """

    loss_nats: float
    interval_nats: tuple[float, float]
    perplexity: float
    bits_per_byte: float | None
    num_targets: int
    num_bytes: int | None
    num_documents: int

    def __str__(self) -> str:
        text = f"loss {self.loss_nats:.4f} nats per token"
        low, high = self.interval_nats
        if math.isfinite(low):
            text += f" (95% {low:.4f} to {high:.4f} over {self.num_documents:,} documents)"
        text += f", perplexity {self.perplexity:.2f}"
        if self.bits_per_byte is not None:
            text += f", {self.bits_per_byte:.4f} bits per byte"
        return f"{text}; {self.num_targets:,} targets"


def evaluate(
    run: Run,
    texts: str | Iterable[str] | Dataset | Iterable[Batch | np.ndarray],
    *,
    batch_size: int = 32,
    overlap: int | None = None,
) -> Evaluation:
    """The loss of a run's model on texts, on the validation documents of a dataset, or on batches.

    An end-of-text token is put before each document, so that its first token is a target too; the
    end-of-text token after it is not a target. (A run with `data.window=documents` has never seen
    that token: there the first token of a document is not a target, and its bytes do not count.) A
    document longer than the context is read in overlapping windows: each token is predicted once,
    from at least `overlap` earlier tokens, or from all if there are fewer.

    Batches are scored as they are, so `run.validation_batches()` gives the evaluation loss of
    training.

    Args:
      run: the run; texts are encoded by its tokenizer.
      texts: one text or several; a `Dataset`; or token ids [B, T], with or without labels.
      batch_size: number of windows computed together.
      overlap: number of tokens that consecutive windows of a document share; by default half of
        the context.

    Returns:
      The loss, perplexity and bits per byte.

    Raises:
      ValueError: there is no target, or `overlap` is not 1 to `context_length - 1`, or
        `batch_size` is not positive.
      RunError: the run has no tokenizer to encode texts with.

    Example:
      >>> import nfllm
      >>> run = nfllm.load_run("runs/default")
      >>> nfllm.evaluate(run, ["def f(x): return x"]).bits_per_byte > 0
      True
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    context_length = run.config.model.context_length
    overlap = context_length // 2 if overlap is None else overlap
    if not 1 <= overlap < context_length:
        raise ValueError(
            f"overlap={overlap} is outside 1 to {context_length - 1}: a window of "
            f"model.context_length={context_length} tokens needs one shared and one new token"
        )
    if isinstance(texts, Dataset):
        texts = validation_texts(texts)
    items = _items(texts)
    first = next(items, None)
    items = itertools.chain([] if first is None else [first], items)
    sums = _Sums([], [], [])
    if isinstance(first, str):
        starts_with_end = run.config.data.window != "documents"
        encode = functools.partial(_encode, run, starts_with_end)
        rows = _windows(map(encode, items), sums, context_length, overlap)
        batches: Iterable[_Rows] = _batched(rows, batch_size, context_length)
    else:
        batches = _rows_of_batches(items, run.model.vocab_size, sums)
    for batch in batches:
        nats, targets = _losses(run.model, run.params, batch.tokens, batch.labels)
        sums.add(batch.documents, np.asarray(nats), np.asarray(targets))
    return _summary(sums)


def _items(texts: Any) -> Iterator[Any]:
    """Texts, or batches of token ids; a column of texts has one axis, as no batch has."""
    if isinstance(texts, str):
        return iter([texts])
    if getattr(texts, "ndim", None) == 1 and isinstance(next(iter(texts), None), str):
        return iter(texts)
    return iter(as_batches(texts))


def validation_texts(dataset: Dataset) -> Iterator[str]:
    """The validation documents of a dataset, as text."""
    tokenizer = dataset.tokenizer
    file = TokenFile.open(dataset.directory, "validation", token_dtype(tokenizer.vocab_size))
    for start, stop in itertools.pairwise(file.offsets):
        yield tokenizer.decode(file.tokens[start : stop - 1])  # without the end-of-text token


class _Rows(NamedTuple):
    """Windows, and the index of the document that each belongs to."""

    tokens: np.ndarray
    labels: np.ndarray
    documents: np.ndarray


class _Sums(NamedTuple):
    """Sums by document: nats, targets, and bytes (None if unknown)."""

    nats: list[float]
    targets: list[int]
    num_bytes: list[int | None]

    def open(self, num_bytes: int | None) -> int:
        """Adds a document without losses; returns its index."""
        self.nats.append(0.0)
        self.targets.append(0)
        self.num_bytes.append(num_bytes)
        return len(self.nats) - 1

    def add(self, documents: np.ndarray, nats_B: np.ndarray, targets_B: np.ndarray) -> None:
        """Adds the losses of rows to their documents; -1 is a padding row."""
        for number, nats, targets in zip(documents, nats_B, targets_B, strict=True):
            if number >= 0:
                self.nats[number] += float(nats)
                self.targets[number] += int(targets)


def row_losses(logits_BTV: jax.Array, labels_BT: jax.Array) -> jax.Array:
    """Loss of each row, summed over its targets, [B]; see `nfllm.training.loss`."""
    return jax.vmap(next_token_loss)(logits_BTV[:, None], labels_BT[:, None])


def row_targets(labels_BT: jax.Array) -> jax.Array:
    """Number of targets of each row, [B]."""
    return jax.vmap(count_targets)(labels_BT[:, None])


@functools.partial(jax.jit, static_argnums=0)
def _losses(
    model: Decoder, params: Params, tokens_BT: jax.Array, labels_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    logits_BTV: Any = model.apply({"params": params}, tokens_BT)
    return row_losses(logits_BTV, labels_BT), row_targets(labels_BT)


def _encode(run: Run, starts_with_end: bool, text: str) -> tuple[np.ndarray, int]:
    """Tokens of a document, of which the first is not a target, and the bytes of the others."""
    if not isinstance(text, str):
        raise ValueError(
            f"texts and a {type(text).__name__} cannot be evaluated together; give either texts or "
            "token ids"
        )
    tokenizer = run.tokenizer
    tokens, num_bytes = tokenizer.encode(text), len(text.encode())
    if starts_with_end:
        tokens = np.concatenate([[tokenizer.end_of_text_id], tokens]).astype(np.int32)
    elif len(tokens):
        num_bytes -= tokenizer.num_bytes(tokens[0])
    check_token_ids(tokens, run.model.vocab_size)
    return tokens, num_bytes


def _windows(
    documents: Iterable[tuple[np.ndarray, int]], sums: _Sums, context_length: int, overlap: int
) -> Iterator[tuple[np.ndarray, int, int]]:
    """Windows, each with its number of leading tokens that are no target, and its document."""
    for tokens, num_bytes in documents:
        if len(tokens) < 2:
            continue
        number = sums.open(num_bytes)
        yield tokens[:context_length], 1, number
        for stop in range(context_length, len(tokens), context_length - overlap):
            yield tokens[stop - overlap : stop - overlap + context_length], overlap, number


def _batched(
    windows: Iterable[tuple[np.ndarray, int, int]], batch_size: int, context_length: int
) -> Iterator[_Rows]:
    windows = iter(windows)
    while chosen := list(itertools.islice(windows, batch_size)):
        shape = (batch_size, context_length)
        rows = _Rows(
            np.zeros(shape, np.int32), np.full(shape, IGNORED_LABEL), np.full(batch_size, -1)
        )
        for row, (tokens, known, number) in enumerate(chosen):
            rows.tokens[row, : len(tokens)] = tokens
            rows.labels[row, known : len(tokens)] = tokens[known:]
            rows.documents[row] = number
        yield rows


def _rows_of_batches(batches: Iterable[Any], vocab_size: int, sums: _Sums) -> Iterator[_Rows]:
    for tokens, labels in labelled(batches, vocab_size):
        numbers = [sums.open(None) if count else -1 for count in row_targets(jnp.asarray(labels))]
        yield _Rows(np.asarray(tokens), np.asarray(labels), np.array(numbers))


def _summary(sums: _Sums) -> Evaluation:
    nats, targets = np.array(sums.nats, np.float64), np.array(sums.targets)
    num_targets = int(targets.sum())
    if not num_targets:
        raise ValueError(
            "there is no target to score: the texts are empty, or the batches have no label"
        )
    loss = float(nats.sum() / num_targets)
    low = high = math.nan
    if len(nats) > 1:
        interval: Interval = bootstrap_interval(
            np.stack([nats, targets], axis=1),
            key=jax.random.key(0),
            statistic=lambda x: jnp.sum(x[:, 0]) / jnp.sum(x[:, 1]),
        )
        low, high = float(interval.low), float(interval.high)
    sizes = [size for size in sums.num_bytes if size is not None]
    num_bytes = sum(sizes) if sizes else None
    return Evaluation(
        loss_nats=loss,
        interval_nats=(low, high),
        perplexity=perplexity(loss),
        bits_per_byte=loss * num_targets / math.log(2) / num_bytes if num_bytes else None,
        num_targets=num_targets,
        num_bytes=num_bytes,
        num_documents=len(nats),
    )
