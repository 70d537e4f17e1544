import contextlib
import dataclasses
import gc
import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from training_parts import make_parts, small_config

from nfllm.config import CheckpointConfig
from nfllm.rundir import RunError
from nfllm.trainer import peers
from nfllm.trainer.checkpoint_files import check_files, named_checksums, with_checksum
from nfllm.trainer.checkpoints import Checkpoints, restore_params
from nfllm.trainer.placement import Placement

# Orbax abandons its other reads when one fails.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]

CONFIG = CheckpointConfig(every=0, keep=2, keep_every=None)


@pytest.fixture(autouse=True)
def abandoned_reads():
    """Python notices them here, under the filters above, and not in a later test."""
    yield
    gc.collect()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB, where the tests may mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount a small disk: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", path], check=True)


@pytest.fixture(scope="module")
def parts():
    return make_parts(small_config())


@pytest.fixture(scope="module")
def state(parts):
    """As a checkpoint gives it back."""
    return jax.jit(parts.init)(jax.random.key(0)).without_guard()


def _at(state, step):
    """A state of `step` steps whose parameters tell which one it is."""
    params = jax.tree.map(lambda x: x + step, state.params)
    return state.replace(step=jnp.int32(step), params=params)


def _abstract(parts, strategy="pmap", devices=1):
    config = small_config(parallel={"strategy": strategy})
    return Placement(config, jax.devices()[:devices]).abstract(parts.init)


def _save(run, state, steps, config=CONFIG, earlier=CONFIG):
    with Checkpoints(run, config, small_config(checkpoint=vars(earlier))) as checkpoints:
        for step in steps:
            checkpoints.save(_at(state, step), "data")
        checkpoints.wait()
        return checkpoints.steps()


def _assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def _largest_file(run, step):
    files = (run / "checkpoints" / f"step_{step}").rglob("*")
    return max((path for path in files if path.is_file()), key=lambda path: path.stat().st_size)


def test_what_was_saved_comes_back_into_any_sharding(tmp_path, parts, state):
    """Also from a directory whose name Orbax would read as a pattern."""
    tmp_path = tmp_path / "runs [exp1] *?"
    _save(tmp_path, state, [3, 7])
    for strategy, devices in [("pmap", 1), ("pmap", 4), ("fsdp", 4), ("fsdp", 2)]:
        abstract = _abstract(parts, strategy, devices)
        with Checkpoints(tmp_path, CONFIG) as checkpoints:
            found = checkpoints.restore(abstract, "data")
            assert checkpoints.fallbacks == []
        _assert_equal(found, _at(state, 7))
        kernel = found.params["blocks"]["mlp"]["in_kernel"]
        assert len(kernel.sharding.device_set) == devices
        assert kernel.sharding.is_fully_replicated == (strategy == "pmap")
    step, params = restore_params(tmp_path)
    assert step == 7
    _assert_equal(params, _at(state, 7).params)


@pytest.mark.slow
def test_parameters_are_read_without_the_devices_that_trained_them(tmp_path, parts, state):
    """As a notebook does, on one device, after training on several."""
    for strategy in ("pmap", "fsdp"):
        abstract = _abstract(parts, strategy, devices=4)
        placed = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), state, abstract)
        _save(tmp_path / strategy, placed, [3])
        script = (
            "import sys, jax, numpy as np\n"
            "from nfllm.trainer.checkpoints import restore_params\n"
            "assert jax.device_count() == 1\n"
            "step, params = restore_params(sys.argv[1])\n"
            "np.savez(sys.argv[2], step, *jax.tree.leaves(params))\n"
        )
        result = tmp_path / f"{strategy}.npz"
        command = [sys.executable, "-c", script, tmp_path / strategy, result]
        subprocess.run(command, check=True, env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"})
        with np.load(result) as found:
            step, *leaves = found.values()
        assert step == 3
        _assert_equal(leaves, jax.tree.leaves(_at(state, 3).params))


def test_an_empty_run_has_no_checkpoint(tmp_path, parts):
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        assert checkpoints.restore(_abstract(parts), "data") is None
    with pytest.raises(RunError, match="checkpoints holds none; train the run until its first"):
        restore_params(tmp_path)
    with pytest.raises(RunError, match="does not exist; train the run"):
        restore_params(tmp_path / "nowhere")


def test_the_newest_are_kept_and_every_kth(tmp_path, state):
    keep_every = dataclasses.replace(CONFIG, keep_every=4)
    assert _save(tmp_path, state, range(1, 8), keep_every) == [4, 6, 7]


def test_what_an_earlier_command_kept_is_not_deleted_by_a_later_one(tmp_path, state):
    keep_every = dataclasses.replace(CONFIG, keep_every=4)
    assert _save(tmp_path, state, range(1, 9), keep_every) == [4, 7, 8]
    assert _save(tmp_path, state, [9, 10, 11], earlier=keep_every) == [4, 7, 8, 10, 11]
    assert _save(tmp_path, state, [12, 13]) == [4, 7, 8, 12, 13]
    fewer = dataclasses.replace(CONFIG, keep=1)
    assert _save(tmp_path, state, [14, 15], fewer) == [4, 7, 8, 12, 13, 15]


def _notes_of(run, step):
    return next((run / "checkpoints" / f"step_{step}" / "notes").rglob("metadata"))


def _rewrite(path, **changes):
    path.write_text(json.dumps(with_checksum({**json.loads(path.read_text()), **changes})))


def _truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [_truncate, _flip_a_bit, Path.unlink])
def test_a_damaged_checkpoint_is_passed_over_and_saved_again(
    tmp_path, parts, state, damage, caplog
):
    _save(tmp_path, state, [3, 7])
    damage(_largest_file(tmp_path, 7))
    step, params = restore_params(tmp_path)
    assert step == 3
    _assert_equal(params, _at(state, 3).params)
    assert "checkpoint of step 7 is damaged (" in caplog.text
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        _assert_equal(checkpoints.restore(_abstract(parts), "data"), _at(state, 3))
        (message,) = checkpoints.fallbacks
        assert message.startswith("checkpoint of step 7 is damaged (")
        assert "pybind11" not in message  # the cause, not its wrapping
        checkpoints.save(_at(state, 7), "data")
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        _assert_equal(checkpoints.restore(_abstract(parts), "data"), _at(state, 7))
        assert checkpoints.fallbacks == []


@pytest.mark.parametrize("field", ["format_version", "data_fingerprint", "checksums"])
def test_damaged_notes_are_damage_and_not_other_data(tmp_path, parts, state, field):
    _save(tmp_path, state, [3, 7])
    path = _notes_of(tmp_path, 7)
    content = bytearray(path.read_bytes())
    value = re.search(rb'"%s": [{"]?.*?(\w)[,"}]' % field.encode(), content)
    content[value.start(1)] ^= 1
    path.write_bytes(content)
    assert restore_params(tmp_path)[0] == 3
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        _assert_equal(checkpoints.restore(_abstract(parts), "data"), _at(state, 3))
        (message,) = checkpoints.fallbacks
    assert message == (
        "checkpoint of step 7 is damaged (its notes have changed since they were written)"
    )


def test_notes_of_an_early_version_have_no_checksum(tmp_path, parts, state):
    _save(tmp_path, state, [3])
    path = _notes_of(tmp_path, 3)
    notes = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in notes.items() if k != "notes_crc32"}))
    assert "notes_crc32" in notes
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        _assert_equal(checkpoints.restore(_abstract(parts), "data"), _at(state, 3))


@pytest.mark.parametrize("share", [0, 1])
def test_a_truncated_file_is_found_by_each_process_without_a_checksum(tmp_path, state, share):
    """Object storage is listed without checksums; the processes divide the contents, not sizes."""
    _save(tmp_path, state, [7])
    folder = tmp_path / "checkpoints" / "step_7" / "state"
    listed = json.loads((folder / "files.json").read_text())
    sizes = {name: {"bytes": noted["bytes"]} for name, noted in listed.items()}
    (folder / "files.json").write_text(json.dumps(sizes))
    check_files(epath.Path(tmp_path / "checkpoints"), 7, share, shares=2)
    for name, noted in sizes.items():
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1])
        message = f"^{re.escape(name)} has {noted['bytes'] - 1} bytes instead of {noted['bytes']}$"
        with pytest.raises(ValueError, match=message):
            check_files(epath.Path(tmp_path / "checkpoints"), 7, share, shares=2)
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("damage", [_truncate, _flip_a_bit, Path.unlink])
def test_no_damaged_file_of_the_state_is_given_to_orbax(
    tmp_path, parts, state, damage, monkeypatch
):
    """It abandons its other reads when one fails, and then may wait for ever."""
    whole = tmp_path / "whole"
    _save(whole, state, [7])
    names = [path.relative_to(whole) for path in whole.glob("checkpoints/*/state/**/*")]
    names = [
        name for name in names if (whole / name).is_file() and name.name != "commit_success.txt"
    ]
    assert len(names) >= 6
    given = []
    monkeypatch.setattr(
        ocp.StandardCheckpointHandler,
        "restore",
        lambda self, directory, *rest, **options: given.append(directory),
    )
    for number, name in enumerate(names):
        run = tmp_path / str(number)
        shutil.copytree(whole, run)
        damage(run / name)
        if name.name == "files.json" and damage is Path.unlink:
            continue  # a checkpoint from before there was a list
        for restore in (
            lambda run=run: restore_params(run),
            lambda run=run: _restored(run, parts),
        ):
            with pytest.raises(RunError, match="step 7 is damaged"):
                restore()
    assert given == []


def _restored(run, parts):
    with Checkpoints(run, CONFIG) as checkpoints:
        return checkpoints.restore(_abstract(parts), "data")


def test_a_checkpoint_from_before_there_was_a_list_of_files_is_read(tmp_path, parts, state):
    _save(tmp_path, state, [3])
    (tmp_path / "checkpoints" / "step_3" / "state" / "files.json").unlink()
    _assert_equal(_restored(tmp_path, parts), _at(state, 3))


def test_what_other_processes_say_of_a_checkpoint_counts(tmp_path, parts, state, monkeypatch):
    """A step that one cannot read, or does not even see, all pass over."""
    _save(tmp_path, state, [3, 7])
    asked = []

    def exchange(what, own, limit_seconds=None):
        asked.append(what)
        if what == "to look for checkpoints":
            return [own, [3, 7, 9]]
        return [own, "its disk has gone" if what == "to look at the checkpoint of step 7" else None]

    monkeypatch.setattr(peers, "exchange", exchange)
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        _assert_equal(checkpoints.restore(_abstract(parts), "data"), _at(state, 3))
        nine, seven = checkpoints.fallbacks
    assert nine.startswith("checkpoint of step 9 is damaged (")
    assert nine.endswith(", in process 0)")
    assert seven == "checkpoint of step 7 is damaged (its disk has gone, in process 1)"
    assert [what.split()[1] for what in asked] == [
        "look",
        "look",
        "look",
        "look",
        "read",
        "compare",
    ]


@pytest.mark.parametrize("error", [RuntimeError("Event loop is closed"), ValueError("another")])
def test_only_what_abandoned_writes_report_is_left_out(tmp_path, monkeypatch, error):
    reported = []
    hook = reported.append
    monkeypatch.setattr(sys, "unraisablehook", hook)
    with Checkpoints(tmp_path, CONFIG):
        sys.unraisablehook(types.SimpleNamespace(exc_value=error))
    assert sys.unraisablehook is hook
    assert [x.exc_value for x in reported] == ([] if isinstance(error, RuntimeError) else [error])


def test_a_checksum_tells_single_bits_and_the_order_of_values():
    x = np.arange(6, dtype=np.float32)
    swapped, flipped = x[[1, 0, 2, 3, 4, 5]], x.copy()
    flipped.view(np.uint32)[4] ^= 1
    sums = [named_checksums({"x": y})["['x']"] for y in (x, swapped, flipped, x[::-1].copy())]
    assert len(set(sums)) == 4
    # As written: of every word with its place, modulo 2^32. Earlier checkpoints hold such numbers.
    total = 0
    for place, word in enumerate(map(int, x.view(np.uint32))):
        mixed = (word ^ (place * 2654435761 % 2**32)) * 2246822519 % 2**32
        total += mixed ^ (mixed >> 15)
    assert sums[0] == total % 2**32


def test_wrong_values_in_a_readable_checkpoint_are_found_by_their_checksum(tmp_path, parts, state):
    _save(tmp_path, state, [3, 7])
    notes = _notes_of(tmp_path, 7)
    sums = json.loads(notes.read_text())["checksums"]
    _rewrite(notes, checksums={**sums, (name := ".params['token_embedding']"): sums[name] ^ 1})
    assert restore_params(tmp_path)[0] == 3
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        _assert_equal(checkpoints.restore(_abstract(parts), "data"), _at(state, 3))
        assert "checksum" in checkpoints.fallbacks[0]


def test_no_readable_checkpoint_is_an_error_that_deletes_nothing(tmp_path, parts, state):
    _save(tmp_path, state, [3])
    _truncate(_largest_file(tmp_path, 3))
    with (
        Checkpoints(tmp_path, CONFIG) as checkpoints,
        pytest.raises(RunError, match=r"no checkpoint in .* can be read: checkpoint of step 3"),
    ):
        checkpoints.restore(_abstract(parts), "data")
    assert (tmp_path / "checkpoints" / "step_3").exists()


def test_other_data_and_newer_formats_are_refused_by_name(tmp_path, parts, state):
    _save(tmp_path, state, [3])
    with (
        Checkpoints(tmp_path, CONFIG) as checkpoints,
        pytest.raises(RunError, match="fingerprint data, but the data now has other"),
    ):
        checkpoints.restore(_abstract(parts), "other")
    notes = _notes_of(tmp_path, 3)
    _rewrite(notes, format_version=99)
    with (
        Checkpoints(tmp_path, CONFIG) as checkpoints,
        pytest.raises(RunError, match="format_version 99; this nfllm reads up to 1"),
    ):
        checkpoints.restore(_abstract(parts), "data")
    with pytest.raises(RunError, match="format_version 99; this nfllm reads up to 1"):
        restore_params(tmp_path)


def test_damaged_checkpoints_do_not_take_the_place_of_good_ones(tmp_path, parts, state):
    _save(tmp_path, state, [3, 7])
    _truncate(_largest_file(tmp_path, 7))
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.restore(_abstract(parts), "data")
        assert checkpoints.steps() == [3, 7]
        checkpoints.save(_at(state, 4), "data")
        assert checkpoints.steps() == [3, 4]


def test_the_step_of_a_damaged_checkpoint_that_is_gone_by_then_is_saved(tmp_path, parts, state):
    """More frequent checkpoints than before push it out before its step comes again."""
    _save(tmp_path, state, [3, 7])
    _truncate(_largest_file(tmp_path, 7))
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.restore(_abstract(parts), "data")
        for step in (4, 5, 6, 7):
            checkpoints.save(_at(state, step), "data")
        assert checkpoints.steps() == [6, 7]
        _assert_equal(checkpoints.restore(_abstract(parts), "data"), _at(state, 7))


@pytest.mark.parametrize("background", [False, True])
def test_a_full_disk_is_an_error_that_keeps_what_was_saved(
    parts, state, small_disk, monkeypatch, caplog, capfd, background
):
    if background:  # as on an accelerator
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    run = small_disk / "run"
    _save(run, state, [3])
    with (small_disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(1 << 12))
    with pytest.raises(RunError, match=r"could not be written .*No space left .* ones are kept"):
        _save(run, state, [7])
    assert "Traceback" not in caplog.text + capfd.readouterr().err
    (small_disk / "filler").unlink()
    with Checkpoints(run, CONFIG) as checkpoints:
        _assert_equal(checkpoints.restore(_abstract(parts), "data"), _at(state, 3))


def test_a_save_that_was_cut_off_leaves_no_checkpoint(tmp_path, parts, state):
    _save(tmp_path, state, [3, 7])
    folder = tmp_path / "checkpoints"
    cut_off = shutil.move(folder / "step_7", folder / "step_7.orbax-checkpoint-tmp")
    assert restore_params(tmp_path)[0] == 3
    assert cut_off.exists()  # a reader cannot know that nothing is writing it
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        _assert_equal(checkpoints.restore(_abstract(parts), "data"), _at(state, 3))
        checkpoints.save(_at(state, 4), "data")  # waits for the thread that cleans up
    assert not cut_off.exists()
