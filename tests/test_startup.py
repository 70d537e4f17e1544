"""One Ctrl-C ends a command with 130, whenever it comes and whatever swallows it."""

import _thread
import gc
import os
import signal
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest
from trainer import TIMEOUT_SECONDS

from nfllm import startup
from nfllm.trainer import interrupt

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
# Each script presses Ctrl-C where Python or a library cannot pass an exception on.
_PRESS = """
import gc, os, signal, sys, time, weakref
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever started the tests
from nfllm import startup
startup.end_on_ctrl_c()
def press(*_): os.kill(os.getpid(), signal.SIGINT)
"""
_WHILE_IMPORTING = "press(); time.sleep(20)"
_AFTER = {
    "a callback of the garbage collector, at its start and again at its end": (
        "gc.callbacks.append(press); gc.collect()"
    ),
    "a finalizer": "class A:\n    def __del__(self): press(); time.sleep(0.01)\nA()",
    "a weak reference": "class A: pass\na = A(); b = weakref.ref(a, press); del a",
    "plain code": "press()",
}


def _run(code):
    done = subprocess.run(
        [sys.executable, "-c", _PRESS + code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=TIMEOUT_SECONDS,
    )
    return done.returncode, done.stdout, done.stderr


def test_while_it_imports_a_command_ends_at_once():
    assert _run(_WHILE_IMPORTING) == (130, "", "")


@pytest.mark.parametrize("where", _AFTER)
def test_later_it_is_raised_again_until_it_is_heard(where):
    code = (
        "startup.raise_on_ctrl_c()\ntry:\n"
        + "\n".join("    " + line for line in _AFTER[where].splitlines())
        + "\n    gc.callbacks.clear()\n    time.sleep(20)\nexcept KeyboardInterrupt:\n"
        "    print('cleaned up'); sys.exit(130)\n"
    )
    assert _run(code) == (130, "cleaned up\n", "")


def test_what_a_bare_except_has_swallowed_ends_the_run_before_its_first_step(monkeypatch):
    monkeypatch.setattr(startup._State, "pressed", True)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interrupt.watch():
        raise AssertionError("the run has begun")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_command_that_is_to_ignore_ctrl_c_does(monkeypatch):
    """As the shell has it for one in the background."""
    handlers = []
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_IGN)
    monkeypatch.setattr(signal, "signal", lambda *arguments: handlers.append(arguments))
    startup.end_on_ctrl_c()
    startup.raise_on_ctrl_c()
    assert handlers == []


def test_what_was_swallowed_twice_is_raised_once(monkeypatch):
    """A second one would interrupt the cleanup."""
    threads, presses = [], []
    monkeypatch.setattr(startup, "_AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(_thread, "start_new_thread", lambda run, _: threads.append(run))
    monkeypatch.setattr(signal, "pthread_kill", lambda *arguments: presses.append(arguments))
    swallowed = types.SimpleNamespace(exc_type=KeyboardInterrupt)
    for expected in (1, 2):
        startup._raise_again(swallowed)
        startup._raise_again(swallowed)
        assert len(threads) == expected
        threads[-1]()
        assert len(presses) == expected


def test_other_errors_that_cannot_be_raised_are_reported_as_ever(monkeypatch):
    reported = []
    monkeypatch.setattr(sys, "__unraisablehook__", reported.append)
    error = types.SimpleNamespace(exc_type=ValueError)
    startup._raise_again(error)
    assert reported == [error]
    assert threading.active_count() < 50
    assert gc.isenabled()
