"""python -m nfllm.evaluate RUN [--config.data.KEY=VALUE ...]

In Python `nfllm.evaluate` is the function of this name, also after `import nfllm.evaluate`.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence

from absl import logging

from nfllm.config import ConfigError, DataConfig
from nfllm.config.extensions import add_import_flag
from nfllm.console import escape_unprintable
from nfllm.data import corpora
from nfllm.data.dataset import data_directory
from nfllm.flags import split_overrides
from nfllm.measure.evaluation import evaluate, validation_texts
from nfllm.run import Run, load_run

_READ_KEYS = (
    "dataset",
    "split",
    "sources",
    "data_dir",
    "text_field",
    "document_separator",
    "malformed",
)


def main(arguments: list[str] | None = None) -> int:
    """Prints loss, perplexity and bits per byte; returns 2 for faulty arguments."""
    escape_unprintable()
    parser = argparse.ArgumentParser(
        prog="python -m nfllm.evaluate",
        description="Loss, perplexity and bits per byte of a run: on its own validation documents, "
        "or on all documents of a corpus given by --config.data.dataset or --config.data.sources, "
        "with the keys of train.py.",
    )
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument("--step", type=int, help="step of the checkpoint; default: the newest")
    parser.add_argument("--batch_size", type=int, default=32, help="windows per batch (32)")
    parser.add_argument("--max_documents", type=int, help="use only the first N; default: all")
    add_import_flag(parser)
    options, others = parser.parse_known_args(arguments)
    if options.max_documents is not None and options.max_documents < 1:
        parser.error(f"--max_documents {options.max_documents} must be at least 1")
    logging.set_verbosity(logging.WARNING)  # Orbax and TFDS log every step
    try:
        changes = _changes(others)
        run = load_run(options.run, step=options.step)
        texts = _own_documents(run, changes) or _documents(run.config.data, changes)
        chosen = itertools.islice(texts, options.max_documents)
        print(f"step {run.step}  {evaluate(run, chosen, batch_size=options.batch_size)}")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _own_documents(run: Run, changes: Mapping[str, object]) -> Iterator[str] | None:
    """The run's validation documents; None if the command line chooses another corpus.

    Raises:
      ConfigError: it sets a key that evaluation does not read.
    """
    is_own = not changes.keys() & {"dataset", "sources", "split"}
    read = ("data_dir",) if is_own else _READ_KEYS
    if unread := sorted(changes.keys() - set(read)):
        raise ConfigError(
            f"data.{unread[0]} has no effect here: "
            + (
                "to evaluate another corpus, name it by data.dataset or data.sources"
                if is_own
                else f"of a corpus only data.{', data.'.join(_READ_KEYS)} are read"
            )
        )
    if not is_own:
        return None
    data = dataclasses.replace(run.config.data, **changes)  # type: ignore[arg-type]
    config = dataclasses.replace(run.config, data=data)
    return validation_texts(dataclasses.replace(run, config=config).dataset())


def _changes(arguments: Sequence[str]) -> dict[str, object]:
    """The keys of `data` that the command line sets."""
    changes, others = split_overrides(list(arguments))
    other_keys = [f"--config.{name}" for name in changes if not name.startswith("data.")]
    if unexpected := [*others, *other_keys]:
        raise ConfigError(
            f"unexpected argument {unexpected[0]!r}; choose the corpus by --config.data.KEY=VALUE"
        )
    return {name.removeprefix("data."): value for name, value in changes.items()}


def _documents(trained_on: DataConfig, changes: dict[str, object]) -> Iterator[str]:
    """All documents of the corpus that the command line chooses."""
    if "sources" in changes and "dataset" not in changes:
        changes = {"dataset": "text_files", **changes}
    whole: dict[str, object] = {
        "sources": "",
        "text_field": None,
        "document_separator": None,
        "validation_split": "hash",
        "validation_field": None,
        "validation_values": "",
        "validation_source": None,
    }
    other = changes.keys() & {"dataset", "sources"}
    values = {**(whole if other else {}), **changes}
    config = dataclasses.replace(trained_on, **values)  # type: ignore[arg-type]
    root = data_directory(config)
    corpus = corpora.open_corpus(config, root)
    corpus.prepare(progress=False)
    return (record.text for record, _ in corpus.documents())


if __name__ == "__main__":
    sys.exit(main())

# Importing this module sets the package's attribute `evaluate`, which should be the function.
sys.modules[__name__] = evaluate  # type: ignore[assignment]
