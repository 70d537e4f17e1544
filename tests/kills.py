"""SIGKILL at chosen moments of a real run, and whether it ended as one that nothing disturbed."""

import contextlib
import time
from typing import Literal, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from trainer import wait_until

from nfllm.rundir.metrics import read_metrics

Moment = Literal["starting", "training", "saving"]


class Kill(NamedTuple):
    """What a kill did: the last step logged before it, and whether it cut a save in two."""

    moment: Moment
    step: int
    cut_a_save: bool


def start_and_kill(trainer, run, moment, step, delay, **changes):
    """Starts `run` and kills it `delay` seconds after its moment.

    `training` is when it has logged `step`, `saving` when it has begun the save after that, and
    `starting` when its process has been made.
    """
    starts = _num_starts(run)
    process = trainer.start(run, **changes)
    try:
        if moment != "starting":
            wait_until(lambda: _num_starts(run) > starts and _last_step(run) >= step, process)
        if moment == "saving":
            wait_until(lambda: unfinished_saves(run), process, pause=0.0005)
        time.sleep(delay)
    finally:
        process.kill()
        process.communicate()
    return Kill(moment, _last_step(run), bool(unfinished_saves(run)))


def unfinished_saves(run):
    """The folders in which Orbax collects a checkpoint before it gets its name."""
    with contextlib.suppress(FileNotFoundError):
        return [p for p in (run / "checkpoints").iterdir() if "orbax-checkpoint-tmp" in p.name]
    return []


def final_state(run):
    """The newest checkpoint of a run, as it lies on disk."""
    with ocp.CheckpointManager(
        (run / "checkpoints").resolve(), options=ocp.CheckpointManagerOptions(step_prefix="step")
    ) as manager:
        arguments = ocp.args.Composite(state=ocp.args.StandardRestore())
        return manager.restore(manager.latest_step(), args=arguments)["state"]


def assert_same_run(run, expected):
    """Every array of the final state, and every number logged, is the same bit for bit."""
    found, wanted = (
        jax.tree_util.tree_leaves_with_path(final_state(path)) for path in (run, expected)
    )
    for (path, x), (wanted_path, y) in zip(found, wanted, strict=True):
        assert path == wanted_path
        x, y = np.asarray(x), np.asarray(y)
        assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes()), path
    for kind, field in LOGGED:
        found, wanted = (read_metrics(path).series(kind, field) for path in (run, expected))
        for x, y in zip(found, wanted, strict=True):
            assert x.tobytes() == y.tobytes(), (kind, field)


LOGGED = [
    ("train", "loss_nats"),
    ("train", "grad_norm"),
    ("train", "learning_rate"),
    ("telemetry", "entropy_nats"),
    ("eval", "eval_loss_nats"),
]


def _num_starts(run):
    events = read_metrics(run).rows["event"]
    return sum(row["event"] in ("started", "resumed") for row in events)


def _last_step(run):
    rows = read_metrics(run).rows["train"]
    return rows[-1]["step"] if rows else 0
