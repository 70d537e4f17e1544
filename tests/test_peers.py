"""What processes tell each other, over a store in memory in place of JAX's."""

import itertools
import sys
import threading
import time
import types

import jax
import pytest

from nfllm.rundir import RunError
from nfllm.trainer import peers


class Store:
    """The part of JAX's client that is used, for processes that are threads of this one."""

    def __init__(self):
        self.values = {}

    def key_value_set(self, key, value, allow_overwrite=False):
        assert allow_overwrite or key not in self.values
        self.values[key] = value

    def key_value_dir_get(self, folder):
        values = dict(self.values)  # to which the other thread may add
        return [(key, value) for key, value in values.items() if key.startswith(folder)]

    def blocking_key_value_get(self, key, milliseconds):
        deadline = time.monotonic() + milliseconds / 1000
        while key not in self.values:
            if time.monotonic() > deadline:
                raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: GetKeyValue() timed out")
            time.sleep(0.001)
        return self.values[key]


@pytest.fixture
def store(monkeypatch):
    """The store that this process shares with a second one, which says what a test has it say."""
    client = Store()
    own = types.SimpleNamespace(client=client, process_id=0, num_processes=2)
    monkeypatch.setattr(peers, "_distributed", lambda: own)
    monkeypatch.setattr(peers._Own, "exchanges", itertools.count())
    for name, seconds in [("_POLL", 0.01), ("_GRACE", 0.02), ("_STALL", 0.2), ("_PATIENCE", 0.05)]:
        monkeypatch.setattr(peers, f"{name}_SECONDS", seconds)
    return client


@pytest.fixture
def ended(monkeypatch):
    """The exit codes with which the watch would have ended this process."""
    codes = []
    monkeypatch.setattr(peers.os, "_exit", codes.append)
    monkeypatch.setattr(jax.distributed, "shutdown", lambda: None)
    return codes


def test_a_jax_without_the_store_is_named_and_one_process_does_without(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax._src.distributed", None)
    assert peers.exchange("to begin", 1) == [1]
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    with pytest.raises(RunError, match=r"store, which is not where jax .* one process"):
        peers.exchange("to begin", 1)


def test_a_process_that_is_alone_answers_itself():
    assert peers.exchange("to begin", {"a": 1}) == [{"a": 1}]
    threads = threading.active_count()
    with peers.watched():
        assert threading.active_count() == threads


def test_answers_come_in_the_order_of_processes(store):
    store.key_value_set("nfllm/0 to begin/1", '"second"')
    store.key_value_set("nfllm/1 to begin/1", "[2]")
    assert peers.exchange("to begin", "first") == ["first", "second"]
    assert peers.exchange("to begin", [1]) == [[1], [2]]


def test_who_does_not_answer_is_named_in_bounded_time(store, caplog):
    begin = time.monotonic()
    with pytest.raises(
        RunError, match=r"no answer for \d+ s from process 1: to read step 6; find out"
    ):
        peers.exchange("to read step 6", None, 0.5)
    assert time.monotonic() - begin < 60
    assert caplog.text.count("waiting for process 1: to read step 6") == 1


def test_an_answer_to_another_question_does_not_count(store):
    store.key_value_set("nfllm/0 to read step 12/1", "null")
    with pytest.raises(RunError, match="process 1: to read step 6"):
        peers.exchange("to read step 6", None, 0.05)


def test_a_coordinator_that_is_gone_is_an_error(store, monkeypatch):
    def gone(*arguments):
        raise jax.errors.JaxRuntimeError("UNAVAILABLE: connection refused")

    monkeypatch.setattr(store, "blocking_key_value_get", gone)
    with pytest.raises(RunError, match="process 0 cannot be reached"):
        peers.exchange("to begin", None)


def _wait_for(ended):
    deadline = time.monotonic() + 60
    while not ended:
        assert time.monotonic() < deadline, "the process was not ended"
        time.sleep(0.005)


def test_the_failure_of_another_ends_this_process_with_its_reason(store, ended, capsys):
    with peers.watched():
        store.key_value_set("nfllm/failed/1", "the disk is full")
        _wait_for(ended)
        store.key_value_set("nfllm/0 to finish/1", "null")
    assert ended == [1]
    assert capsys.readouterr().err == "error: process 1 has ended: the disk is full\n"


def test_a_process_that_fails_of_the_same_says_so_itself(store, ended, monkeypatch):
    monkeypatch.setattr(peers, "_GRACE_SECONDS", 60.0)
    store.key_value_set("nfllm/failed/1", "the configs differ")

    def fail():
        with peers.watched():
            time.sleep(0.05)
            raise RunError("the configs differ")

    with pytest.raises(RunError, match="the configs differ"):
        fail()
    assert store.values["nfllm/failed/0"] == "the configs differ"
    assert ended == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("of no use")])
def test_others_are_told_of_any_end(store, ended, error):
    with pytest.raises(type(error)), peers.watched():
        raise error
    assert store.values["nfllm/failed/0"] == (str(error) or "KeyboardInterrupt")


def test_when_none_gets_further_it_is_said_where_all_are(store, ended, capsys):
    with peers.watched():
        peers.progress("step 7")
        store.key_value_set("nfllm/progress/1", "step 6")
        _wait_for(ended)
        store.key_value_set("nfllm/0 to finish/1", "null")
    assert "(process 0 at step 7, process 1 at step 6)" in capsys.readouterr().err


@pytest.mark.parametrize("others", ["step", ""])
def test_progress_of_one_or_what_may_take_any_time_is_no_stall(store, ended, monkeypatch, others):
    """By a clock that goes on by a quarter of the limit with each look, 60 times."""
    look, steps, enough = store.key_value_dir_get, itertools.count(), threading.Event()
    now = [0.0]

    def look_later(folder):
        if folder == "nfllm/progress/":
            step = next(steps)
            now[0] += peers._STALL_SECONDS / 4
            store.key_value_set("nfllm/progress/1", others and f"{others} {step}", True)
            if step == 60:
                enough.set()
        return look(folder)

    monkeypatch.setattr(store, "key_value_dir_get", look_later)
    monkeypatch.setattr(peers, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    with peers.watched():
        peers.progress("step 7")
        assert enough.wait(60)
        store.key_value_set("nfllm/0 to finish/1", "null")
    assert ended == []


def test_all_leave_together(store, ended):
    left = []

    def second_comes_later():
        time.sleep(0.1)
        left.append("second")
        store.key_value_set("nfllm/0 to finish/1", "null")

    threading.Thread(target=second_comes_later).start()
    with peers.watched():
        pass
    assert left == ["second"]
