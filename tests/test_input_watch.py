"""A run says when it waits for its data."""

import dataclasses
import threading
import time

import pytest
from tiny import make_corpus, tiny_config

from nfllm.data import batches
from nfllm.rundir.metrics import read_metrics
from nfllm.trainer.input_watch import InputWatch
from nfllm.trainer.loop import fit
from nfllm.trainer.program import Program


class Journal:
    def __init__(self):
        self.events = []

    def event(self, event, step, message):
        self.events.append((event, step, message))


def test_a_slow_input_is_told_once_per_occurrence():
    journal = Journal()
    watch = InputWatch(journal, step=100)
    # A lap waits 0.9 s of 2, 3 of 40 (7.5%), 5 of 40, 6 of 40, 0 of 40, 8 of 10.
    totals = [(0.9, 2), (3.9, 42), (8.9, 82), (14.9, 122), (14.9, 162), (22.9, 172)]
    for step, (waited, trained) in zip(range(125, 275, 25), totals, strict=True):
        watch.lap(step, waited, trained)
    assert [(event, step) for event, step, _ in journal.events] == [
        ("slow_input", 175),
        ("slow_input", 250),
    ]
    assert "steps 151 to 175 waited 5.0 s for data, 12% of their time" in journal.events[0][2]
    assert "steps 226 to 250 waited 8.0 s for data, 80% of their time" in journal.events[1][2]


def test_an_item_that_does_not_come_is_told_while_it_is_waited_for(monkeypatch):
    monkeypatch.setattr(batches, "STALL_SECONDS", 0.05)
    come, got, told = threading.Event(), [], {}

    def make(step):
        if step == 1:
            assert come.wait(60)
        return step

    def on_stall(seconds):
        assert len(got) not in told  # once for an item
        told[len(got)] = seconds
        if len(got) == 1:
            come.set()  # it would never come if this were not called

    with batches.prefetch(make, 0, 3, lambda x: x) as items:
        items.on_stall = on_stall
        for item in items:
            got.append(item)
    assert got == [0, 1, 2]
    assert 0.05 <= told[1] <= items.waited_seconds


@pytest.mark.slow
def test_a_run_with_slow_batches_says_so(tmp_path, monkeypatch):
    config = tiny_config(make_corpus(tmp_path / "corpus"), tmp_path / "data")
    config = dataclasses.replace(
        config, training=dataclasses.replace(config.training, steps=4, log_every=4)
    )
    train_batch, take = Program.train_batch, batches.Prefetcher.__next__
    asked = threading.Semaphore(0)

    def ask(self):
        asked.release()
        return take(self)

    def late(self, step):
        assert asked.acquire(timeout=60)  # else compiling would hide how late it comes
        time.sleep(0.35)
        return train_batch(self, step)

    monkeypatch.setattr(batches.Prefetcher, "__next__", ask)
    monkeypatch.setattr(Program, "train_batch", late)
    fit(config, tmp_path / "run")
    metrics = read_metrics(tmp_path / "run")
    (line,) = metrics.rows["train"]
    (told,) = [row for row in metrics.rows["event"] if row["event"] == "slow_input"]
    waited = line["input_wait_seconds"]
    assert waited > 1.0
    assert f"steps 1 to 4 waited {waited:.1f} s for data" in told["message"]
