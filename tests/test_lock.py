"""Two real runs on one run directory."""

import errno
import fcntl

import pytest
from etils import epath
from tiny import make_corpus
from trainer import TIMEOUT_SECONDS, Trainer, wait_for_step

from nfllm.rundir.metrics import read_metrics
from nfllm.trainer import lock

pytestmark = pytest.mark.slow

LONG = {"training__steps": 100_000, "checkpoint__every": 20}


@pytest.fixture(scope="module")
def trainer(tmp_path_factory, compilation_cache):
    folder = tmp_path_factory.mktemp("lock")
    make_corpus(folder / "corpus")
    return Trainer(folder, compilation_cache)


def test_a_second_run_is_refused_until_the_first_is_gone(trainer):
    run = trainer.folder / "run"
    first = trainer.start(run, **LONG)
    try:
        wait_for_step(run, 25, first)
        code, _, err = trainer.run(run, **LONG)
        assert code == 1
        assert f"{run} is in use by process {first.pid}; wait for it, stop it, or give" in err
        assert "Traceback" not in err
        # The refused one has not touched the run, and the first goes on.
        steps = len(read_metrics(run).rows["train"])
        wait_for_step(run, steps + 5, first)
        assert [row["event"] for row in read_metrics(run).rows["event"]] == ["started"]
        # A file that names a dead process is not a lock: the kernel has let go of it.
        first.kill()
        first.communicate(timeout=TIMEOUT_SECONDS)
        assert (run / ".lock").read_text() == str(first.pid)
        names = [path.name for path in (run / "checkpoints").glob("step_*[0-9]")]
        saved = max(int(name.removeprefix("step_")) for name in names)
        code, out, err = trainer.run(run, **(LONG | {"training__steps": saved + 3}))
        assert code == 0, err
        assert f"resumed at step {saved}" in out
    finally:
        first.kill()
        first.communicate()


def test_a_file_system_without_locks_is_no_error(tmp_path, monkeypatch, caplog):
    """As Lustre without its option, or NFS without its daemon."""

    def refuse(file, flags):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock.hold(epath.Path(tmp_path)):
        assert (
            "cannot be locked ([Errno 37] No locks available): do not start a second" in caplog.text
        )
