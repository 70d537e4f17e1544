"""python -m nfllm.private_cost CONFIG_OR_RUN [--tokens N] [--bandwidth_mbps B ...]"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping

from nfllm.config import Config, ConfigError
from nfllm.config.checks import Value
from nfllm.config.extensions import add_import_flag
from nfllm.config.files import load_config
from nfllm.config.removal import model_at_end
from nfllm.console import escape_unprintable
from nfllm.flags import split_overrides
from nfllm.private_cost.cost import private_cost
from nfllm.private_cost.shape import DecoderShape
from nfllm.private_cost.text import cost_as_text, least_time_as_text
from nfllm.rundir import RunError, read_record


def main(arguments: list[str] | None = None) -> int:
    """Prints the cost of private inference; returns 2 if the arguments are wrong."""
    escape_unprintable()
    try:
        changes, others = split_overrides(sys.argv[1:] if arguments is None else arguments)
        print(_describe(_parser().parse_args(others), changes))
    except (ConfigError, RunError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nfllm.private_cost",
        description="The cost of one private forward pass of a model: operations, primitives and "
        "FLOPs are counted; bytes come from a fit to published numbers, if it covers the model.",
        epilog="--config.SECTION.KEY=VALUE changes a key of a config.",
    )
    parser.add_argument(
        "source",
        metavar="CONFIG_OR_RUN",
        help="a file such as configs/gpt2_codeparrot.py:sm+r, or a run directory",
    )
    parser.add_argument("--tokens", type=int, help="number; default: the model's context length")
    parser.add_argument(
        "--bandwidth_mbps", type=float, help="Mbit/s, for a lower bound on the time"
    )
    parser.add_argument("--round_trip_ms", type=float, default=0.0, help="milliseconds; default 0")
    parser.add_argument(
        "--rounds", type=int, default=1, help="rounds of the protocol, if known; default 1"
    )
    add_import_flag(parser)
    return parser


def _describe(options: argparse.Namespace, changes: Mapping[str, Value]) -> str:
    config, vocab_size = _read(options.source, changes)
    length = config.model.context_length
    num_tokens = length if options.tokens is None else options.tokens
    if num_tokens > length:
        raise ConfigError(
            f"--tokens {num_tokens} exceeds model.context_length={length}; with a config, set "
            f"--config.model.context_length={num_tokens}"
        )
    cost = private_cost(DecoderShape.from_config(model_at_end(config), vocab_size), num_tokens)
    if options.bandwidth_mbps is None:
        for name, default in (("round_trip_ms", 0.0), ("rounds", 1)):
            if getattr(options, name) != default:
                raise ConfigError(f"--{name} needs --bandwidth_mbps, for a bound on the time")
        return cost_as_text(cost)
    time = least_time_as_text(
        cost,
        bits_per_second=1e6 * options.bandwidth_mbps,
        round_trip_seconds=1e-3 * options.round_trip_ms,
        num_rounds=options.rounds,
    )
    return f"{cost_as_text(cost)}\n\n{time}"


def _read(source: str, changes: Mapping[str, Value]) -> tuple[Config, int]:
    """The config and the vocabulary size of a config file or a run.

    Raises:
      ConfigError, RunError, OSError: the source cannot be read, or is a run with changed keys.
    """
    path = source.partition(":")[0]
    if not path.endswith(".py"):
        if changes:
            raise ConfigError(f"{source} is a run, whose keys cannot be changed; give a config")
        record = read_record(source)
        return record.config, record.vocab_size
    values = load_config(source).to_dict()
    for name, value in changes.items():
        section, _, key = name.partition(".")
        values[section][key] = value
    config = Config.from_dict(values)
    return config, _vocab_size(config)


def _vocab_size(config: Config) -> int:
    """Vocabulary size of the config's tokenizer; a trained tokenizer may end up smaller."""
    if config.data.tokenizer == "bpe":
        return config.data.vocab_size
    from nfllm.data.prepare import load_tokenizer
    from nfllm.data.tokenizer import bytes_tokenizer

    if config.data.tokenizer == "bytes":
        return bytes_tokenizer().vocab_size
    return load_tokenizer(config.data.tokenizer).vocab_size


if __name__ == "__main__":
    sys.exit(main())
