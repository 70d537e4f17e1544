"""python -m nfllm.report RUN [RUN ...] --out DIR"""

import argparse
import os
import sys

from etils import epath

from nfllm.config import ConfigError
from nfllm.config.extensions import add_import_flag
from nfllm.console import escape_unprintable
from nfllm.report import write_report
from nfllm.rundir import REPORT_DIR, RunError


def main(arguments: list[str] | None = None) -> int:
    """Writes a report and prints the path of its page; 2 where the arguments are at fault."""
    escape_unprintable()
    parser = argparse.ArgumentParser(
        prog="python -m nfllm.report",
        description="One HTML page, with figures and tables, about one run or several.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run directory")
    parser.add_argument(
        "--out", metavar="DIR", help="where to write; default with one RUN: RUN/report"
    )
    parser.add_argument(
        "--importance",
        action="store_true",
        help="also measure how much the loss owes to each head, beside its entropy",
    )
    parser.add_argument(
        "--steps", action="store_true", help="also the head entropies of each kept checkpoint"
    )
    parser.add_argument(
        "--private_cost",
        action="store_true",
        help="also perplexity against what private inference of each model costs",
    )
    add_import_flag(parser)
    options = parser.parse_args(arguments)
    if options.out is None and len(options.runs) > 1:
        parser.error("several runs need --out DIR")
    # A program may look up the list of packages, for the numbers of the paper; the report may not.
    from nfllm.papers.published import REFERENCE

    out = options.out or epath.Path(options.runs[0]) / REPORT_DIR
    try:
        asked = {name: getattr(options, name) for name in ("importance", "steps", "private_cost")}
        print(write_report(options.runs, out, REFERENCE, **asked))
    except (RunError, ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    # Training may hold the accelerator; a report does without.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.exit(main())
