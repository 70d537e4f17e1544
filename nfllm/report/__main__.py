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
    """Writes a report and prints the path of its page; returns 2 for faulty arguments."""
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
        help="also measure how much the loss rises without each head, beside its entropy",
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
    # The report package must not import upward from the paper's package; this program may.
    from nfllm.papers.published import REFERENCE

    out = options.out or epath.Path(options.runs[0]) / REPORT_DIR
    try:
        names = ("importance", "steps", "private_cost")
        requested = {name: getattr(options, name) for name in names}
        print(write_report(options.runs, out, REFERENCE, **requested))
    except (RunError, ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    # A training run may be using the accelerator, and a report does not need it.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.exit(main())
