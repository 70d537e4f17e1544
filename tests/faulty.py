"""Runs `train.py` with a fault in one place: python faulty.py FAULT PLACE train.py [flags].

FAULT is `none`, `raise`, `hang` or `slow` (of some seconds); PLACE is one of `PLACES`. With a small
FAULTY_LIMIT_SECONDS in the environment, what waits for a process that hangs gives up so soon.
"""

import functools
import os
import runpy
import sys
import time
from pathlib import Path

from nfllm import data, report
from nfllm.data import batches
from nfllm.trainer import checkpoints, hosts, loop, peers, program

PLACES = {
    "starting": (loop, "check_writable"),
    "preparing data": (data, "load"),
    "looking for checkpoints": (checkpoints.Checkpoints, "steps"),
    "reading a checkpoint": (checkpoints, "check_files"),
    "restoring": (checkpoints, "named_checksums"),
    "training": (batches, "train_batch"),
    "evaluating": (batches, "evaluation_batches"),
    "probing": (program.Program, "probe"),
    "saving": (checkpoints.Checkpoints, "save"),
    "finishing": (checkpoints.Checkpoints, "wait"),
    "reporting": (report, "entropy_text"),
}
LIMIT_SECONDS = float(os.environ.get("FAULTY_LIMIT_SECONDS", "1800"))
SLOW_SECONDS = 6.0


def main(fault: str, place: str, script: str) -> None:
    peers._ANSWER_SECONDS = peers._STALL_SECONDS = hosts._PREPARE_SECONDS = LIMIT_SECONDS
    peers._GRACE_SECONDS = 1.0
    hosts._SHUTDOWN_SECONDS = int(os.environ.get("FAULTY_SHUTDOWN_SECONDS", "30"))
    owner, name = PLACES[place]
    whole = getattr(owner, name)

    @functools.wraps(whole)
    def faulty(*arguments, **options):
        if fault == "raise":
            raise OSError("the disk has gone")
        time.sleep(SLOW_SECONDS if fault == "slow" else 1000)
        return whole(*arguments, **options)

    if fault != "none":
        setattr(owner, name, faulty)
    sys.argv = sys.argv[3:]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:4])
