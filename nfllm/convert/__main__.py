"""python -m nfllm.convert SRC DST"""

import argparse
import sys

from absl import logging

from nfllm.config import ConfigError
from nfllm.config.extensions import add_import_flag
from nfllm.console import escape_unprintable
from nfllm.convert import ConversionError, convert
from nfllm.rundir import RunError


def main(arguments: list[str] | None = None) -> int:
    """Converts, and prints what it did; returns 2 for faulty arguments or a faulty source."""
    escape_unprintable()
    parser = argparse.ArgumentParser(
        prog="python -m nfllm.convert",
        description="Turns a Hugging Face GPT-2, GPT-NeoX or Llama checkpoint into a run "
        "directory, or a run directory into a checkpoint that transformers loads.",
    )
    parser.add_argument("source", metavar="SRC", help="a checkpoint's or a run's directory")
    parser.add_argument("destination", metavar="DST", help="a new directory")
    add_import_flag(parser)
    options = parser.parse_args(arguments)
    logging.set_verbosity(logging.WARNING)  # Orbax logs every step of a save
    try:
        print(convert(options.source, options.destination))
    except (ConfigError, ConversionError, RunError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
