"""Prepares corpus, tokenizer and tokens ahead of time, and describes them.

    python -m nfllm.data
    python -m nfllm.data --config.data.dataset=text_files --config.data.sources='corpus/*.jsonl.xz'

The flags are those of `train.py`; a run with the same `data` section uses what was prepared.
"""

import resource
import sys
import time

from absl import logging

from nfllm import data, flags
from nfllm.config import Config, ConfigError
from nfllm.console import escape_unprintable
from nfllm.data.records import MalformedRecordError
from nfllm.flags import check_no_arguments, define_config

_CONFIG = define_config()


def describe(dataset: data.Dataset) -> str:
    """The corpus card as text."""
    card = dataset.card
    documents, windows = card["documents"], card["windows"]
    lines = [
        ("corpus", ", ".join(card["sources"])),
        (
            "documents",
            f"{documents['read']:,} read; left out: {documents['duplicate']:,} exact duplicates, "
            f"{documents['empty']:,} empty, {card['malformed']:,} malformed",
        ),
    ]
    for split in ("train", "validation"):
        counts = card["splits"][split]
        lines.append(
            (
                split,
                f"{counts['documents']:,} documents, {counts['bytes'] / 1e6:,.1f} MB, "
                f"{counts['tokens']:,} tokens, {counts['bytes_per_token']:.2f} bytes per token; "
                f"{windows[split]['count']:,} windows keep {windows[split]['tokens_kept']:.1%}",
            )
        )
    if card["held_out"]["values"]:
        held_out = card["held_out"]
        lines.append(("held out", f"{held_out['field']}: {', '.join(held_out['values'])}"))
    tokenizer = card["tokenizer"]
    lines += [
        ("windows", f"{windows['kind']}, {windows['context_length']} tokens"),
        ("tokenizer", f"{tokenizer['kind']}, vocabulary {tokenizer['vocab_size']:,}"),
        ("fingerprint", dataset.fingerprint),
        ("directory", str(dataset.directory)),
    ]
    return "\n".join(f"{name:<12} {text}" for name, text in lines)


def main(arguments: list[str]) -> None:
    """Prepares the configured dataset and prints its description."""
    escape_unprintable()
    check_no_arguments(arguments)
    logging.set_verbosity(logging.WARNING)  # TFDS logs every step
    start = time.perf_counter()
    try:
        config = Config.from_dict(_CONFIG.value)
        dataset = data.load(config.data, config.model.context_length, progress=True)
    except (ConfigError, MalformedRecordError, OSError) as error:
        sys.exit(f"error: {error}")
    print(describe(dataset))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
    print(
        f"{'took':<12} {time.perf_counter() - start:.1f} s, {peak / 1e9:.2f} GB of memory at most"
    )


if __name__ == "__main__":
    flags.run(main)
