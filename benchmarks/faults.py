"""The effect of faults on runs: each fault is caused in a small run, whose result is checked.

    python benchmarks/faults.py [--kills 20] [--seed 0] [--only WORDS] [--json FILE]

A model of two layers trains 300 steps undisturbed and saves every 5. The same command then meets
kills and damage. "As undisturbed" means that parameters, optimizer moments, step and every logged
loss, gradient norm, learning rate, entropy and evaluation are those of the undisturbed run bit for
bit. Half of the kills come when the temporary folder of a save exists; the others hit
training, or the start. Full and read-only disks are file systems that only root can mount.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
jax.config.update("jax_num_cpu_devices", 2)  # as many as wrote the checkpoints

from kills import LOGGED, assert_same_run, final_state, start_and_kill  # noqa: E402
from tiny import make_corpus  # noqa: E402
from trainer import Trainer, wait_for_step  # noqa: E402

from nfllm.rundir.metrics import read_metrics  # noqa: E402

STEPS = 300
EVERY = 5
RUN = {"training__steps": STEPS, "checkpoint__every": EVERY, "telemetry__every": 50}
LONGEST_DELAY = {"saving": 0.05, "training": 0.2, "starting": 6.0}  # seconds


class Faults:
    """The undisturbed run, and faults of other runs; a method of a row returns the row's text."""

    def __init__(self, folder: Path, seed: int) -> None:
        make_corpus(folder / "corpus")
        self.folder = folder
        self.random = random.Random(seed)
        self.trainer = Trainer(folder, folder / "compiled", optimized=True)
        self.undisturbed = folder / "undisturbed"
        self.end(self.undisturbed)

    def kills(self, count: int) -> str:
        """Kills a run `count` times, at steps spread over its length."""
        run = self.folder / "kills"
        starting = count // 10
        moments = ["saving"] * -(-count // 2) + ["starting"] * starting
        moments += ["training"] * (count - len(moments))
        self.random.shuffle(moments)
        steps = sorted(self.random.randrange(STEPS - 2 * EVERY) for _ in moments)
        cut = 0
        for moment, step in zip(moments, steps, strict=True):
            delay = self.random.uniform(0, LONGEST_DELAY[moment])
            kill = start_and_kill(self.trainer, run, moment, step, delay, **RUN)
            print(f"  {kill.moment}, {delay:.3f} s: {kill}", flush=True)
            cut += kill.cut_a_save
        self.end_as_undisturbed(run)
        return f"{count} kills, {cut} of them in the middle of a save: as undisturbed"

    def damaged_checkpoint(self, damage: Callable[[Path], None]) -> str:
        """Damages the largest file of the newest checkpoint."""
        run = self.copy(damage.__name__, until=STEPS)
        files = (run / "checkpoints" / f"step_{STEPS}").rglob("*")
        damage(max(files, key=lambda path: path.stat().st_size))
        out, _ = self.end_as_undisturbed(run)
        return f"“{line_with('is damaged', out)}”: as undisturbed"

    def damaged_tokens(self) -> str:
        """Flips a bit of the prepared tokens; the run still needs a few batches of them."""
        run = self.copy("tokens", until=STEPS - EVERY)
        (tokens,) = (self.folder / "data").rglob("train.tokens")
        whole = tokens.read_bytes()
        flip_a_bit(tokens)
        _, err = self.end_as_undisturbed(run)
        assert tokens.read_bytes() == whole
        reason = line_with("is prepared again", err).partition("/tokens/")[2]
        return f"“{reason}”: as undisturbed"

    def torn_line(self) -> str:
        """Cuts the metrics within a line, as a kill may."""
        run = self.copy("torn", until=STEPS - EVERY)
        metrics = run / "metrics.jsonl"
        content = metrics.read_bytes()
        metrics.write_bytes(content[: content.index(b'{"step": 298, ') + 40])
        (warning,) = read_metrics(run).warnings
        self.end_as_undisturbed(run)
        assert read_metrics(run).warnings == []
        return f"before: “{warning}”; after: as undisturbed"

    def full_disk(self) -> str:
        """Keeps more checkpoints than the disk holds, until there is room again."""
        with mounted(self.folder / "full", "size=2m") as disk:
            message = self.refused(disk / "run", checkpoint__keep=1000)
            subprocess.run(["mount", "-o", "remount,size=256m", disk], check=True)
            self.end_as_undisturbed(disk / "run")
        return f"“{message}”; with room again, the same command: as undisturbed"

    def read_only_disk(self) -> str:
        """Starts on a disk that cannot be written."""
        with mounted(self.folder / "read_only", "ro") as disk:
            return f"“{self.refused(disk / 'run')}”"

    def second_run(self) -> str:
        """Starts a run in a directory where another process trains."""
        run = self.folder / "second"
        first = self.trainer.start(run, **RUN | {"training__steps": 100_000})
        try:
            wait_for_step(run, EVERY, first)
            message = self.refused(run, training__steps=100_000)
            wait_for_step(run, 2 * EVERY + read_metrics(run).rows["train"][-1]["step"], first)
        finally:
            first.kill()
            first.communicate()
        return f"“{message}”; the first goes on"

    def copy(self, name: str, until: int) -> Path:
        """A copy of the undisturbed run without the checkpoints after step `until`."""
        run = self.folder / name
        shutil.copytree(self.undisturbed, run)
        for path in (run / "checkpoints").glob("step_*"):
            if int(path.name.removeprefix("step_")) > until:
                shutil.rmtree(path)
        return run

    def end(self, run: Path) -> tuple[str, str]:
        """Trains to the end; returns the command's stdout and stderr."""
        code, out, err = self.trainer.run(run, **RUN)
        assert code == 0, err
        return out, err

    def end_as_undisturbed(self, run: Path) -> tuple[str, str]:
        """Trains to the end, and compares the run with the undisturbed one."""
        texts = self.end(run)
        assert_same_run(run, self.undisturbed)
        return texts

    def refused(self, run: Path, **changes: object) -> str:
        """The error line of a command that cannot continue the run."""
        code, _, err = self.trainer.run(run, **RUN | changes)
        assert code == 1, err
        assert "Traceback" not in err, err
        return line_with("error: ", err)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def line_with(words: str, text: str) -> str:
    return next(line.strip() for line in text.splitlines() if words in line)


class NeedsRootError(Exception):
    """Only root may mount the file system that a row needs."""


@contextlib.contextmanager
def mounted(path: Path, options: str) -> Iterator[Path]:
    if os.geteuid() != 0:
        raise NeedsRootError
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="number of kills in the first row")
    parser.add_argument("--seed", type=int, default=0, help="seed of moments and delays")
    parser.add_argument("--only", default="", help="only rows whose names contain this")
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    table: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        faults = Faults(Path(folder), options.seed)
        rows: dict[str, Callable[[], str]] = {
            "kill -9": lambda: faults.kills(options.kills),
            "truncated checkpoint file": lambda: faults.damaged_checkpoint(truncate),
            "bit-flipped checkpoint file": lambda: faults.damaged_checkpoint(flip_a_bit),
            "full disk during a save": faults.full_disk,
            "read-only workdir": faults.read_only_disk,
            "bit-flipped token cache": faults.damaged_tokens,
            "torn metrics.jsonl line": faults.torn_line,
            "second run on one workdir": faults.second_run,
        }
        arrays = len(jax.tree.leaves(final_state(faults.undisturbed)))
        metrics = read_metrics(faults.undisturbed)
        numbers = sum(metrics.series(kind, field)[1].size for kind, field in LOGGED)
        print(f"compared: {arrays} arrays of the state, {numbers} logged numbers", flush=True)
        for name, row in rows.items():
            if options.only not in name:
                continue
            try:
                table[name] = f"ok: {row()}"
            except NeedsRootError:
                table[name] = "skipped: needs root, to mount a file system"
            except (AssertionError, subprocess.CalledProcessError):
                table[name] = f"FAILED: {traceback.format_exc(limit=-1)}"
            print(f"{name:28} {table[name].replace(folder, '...')}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(table, indent=1) + "\n")
    if any(text.startswith("FAILED") for text in table.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
