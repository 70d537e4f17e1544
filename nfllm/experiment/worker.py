"""One run of a grid, in its own process: training, then the measurements at its end.

The config is read as JSON from standard input; exit status `DIVERGED` says that the run diverged.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time

DIVERGED = 3


def main() -> None:
    """Trains the config from standard input in the run directory that the arguments name."""
    parser = argparse.ArgumentParser(prog="python -m nfllm.experiment.worker")
    parser.add_argument("run", help="the run directory")
    parser.add_argument(
        "--parent", type=int, required=True, help="process whose end interrupts this one"
    )
    parser.add_argument("--cores", help="CPU cores to bind to, separated by commas")
    parser.add_argument(
        "--linear-replacement", action="store_true", help="measure how linear the MLPs are"
    )
    parser.add_argument("--import", action="append", dest="imports", default=[])
    options = parser.parse_args()
    _end_with(options.parent)
    if options.cores:
        # This must precede the import of JAX, which counts the cores to make its threads.
        os.sched_setaffinity(0, {int(core) for core in options.cores.split(",")})

    from absl import logging

    from nfllm.config import Config, ConfigError
    from nfllm.config.extensions import import_file
    from nfllm.data.records import MalformedRecordError
    from nfllm.experiment.cause import write_cause
    from nfllm.rundir import RunError
    from nfllm.trainer.loop import fit
    from nfllm.trainer.non_finite import NonFiniteError

    logging.set_verbosity(logging.WARNING)
    try:
        for file in options.imports:
            import_file(file)
        result = fit(Config.from_dict(json.load(sys.stdin)), options.run)
    except NonFiniteError as error:
        print(error)
        sys.exit(DIVERGED)
    except (ConfigError, RunError, MalformedRecordError, OSError) as error:
        sys.exit(f"error: {error}")
    if result.interrupted:
        sys.exit(128 + result.interrupted)
    if options.linear_replacement:
        write_cause(options.run)


def _end_with(parent: int) -> None:
    """Interrupts this process, which then saves, when the process `parent` has ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
