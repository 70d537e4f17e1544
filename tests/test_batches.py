"""Order, shards and labels of batches, and the thread that makes them ahead."""

import gc
import itertools
import threading
import time
import types
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfllm.config import IGNORED_LABEL
from nfllm.data import batches
from nfllm.data.permutation import _mix, permute
from nfllm.data.tokens import TokenFile
from nfllm.data.windows import Windows

SIZES = st.integers(1, 3000)
SEEDS = st.integers(0, 2**70)


def windows_of(count: int, context_length: int = 4) -> Windows:
    """Windows whose tokens are all different: window i holds i * T, i * T + 1, ..."""
    tokens = np.arange(count * context_length, dtype=np.uint32)
    file = TokenFile(tokens, np.array([0, len(tokens)]))
    return Windows(file, context_length, "packed")


@given(size=SIZES, seed=SEEDS, epoch=st.integers(0, 100))
def test_permute_is_a_bijection(size, seed, epoch):
    image = permute(np.arange(size), size, seed, epoch)
    assert np.array_equal(np.sort(image), np.arange(size))


@given(size=SIZES, seed=SEEDS, part=st.integers(1, 50))
def test_permute_asked_in_part_equals_the_whole(size, seed, part):
    whole = permute(np.arange(size), size, seed)
    index = np.arange(size)[::part]
    assert np.array_equal(permute(index, size, seed), whole[index])


def test_permute_hash_equals_published_splitmix64_values():
    # First outputs of the reference generator for the seed 1234567.
    gamma = 0x9E3779B97F4A7C15
    states = np.array([(1234567 + gamma * i) % 2**64 for i in range(5)], np.uint64)
    assert _mix(states).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_permute_order_is_the_one_that_earlier_runs_were_trained_in():
    # A change here changes what a resumed run sees: checkpoints of older versions no longer fit.
    assert permute(np.arange(12), 12, 0, 0).tolist() == [1, 8, 2, 10, 6, 9, 5, 7, 11, 4, 0, 3]
    first = permute(np.arange(8), 20_167, 3, 1)
    assert first.tolist() == [6300, 1446, 13631, 4447, 7756, 8450, 6449, 484]


def test_permute_makes_all_orders_alike_often():
    size, keys = 5, 4000  # the smaller the size, the sooner too few rounds would show
    images = np.stack([permute(np.arange(size), size, 1, key) for key in range(keys)])
    places = [np.bincount(images[:, place], minlength=size) for place in range(size)]
    pairs = Counter(zip(images[:, 0].tolist(), images[:, 1].tolist(), strict=True))
    assert len(pairs) == size * (size - 1)
    for counts in (*places, np.array(list(pairs.values()))):
        expected, freedom = keys / len(counts), len(counts) - 1
        chi_square = ((counts - expected) ** 2 / expected).sum()
        # Chi-square has mean `freedom` and standard deviation sqrt(2 * freedom).
        assert chi_square < freedom + 4 * np.sqrt(2 * freedom)


def test_permute_rejects_an_index_outside():
    with pytest.raises(ValueError, match=r"0 to 5 leave range\(5\)"):
        permute(np.arange(6), 5, 0)
    with pytest.raises(ValueError, match=r"-1 to 0 leave range\(5\)"):
        permute(np.array([-1, 0]), 5, 0)


@given(num_windows=st.integers(1, 60), data=st.data())
def test_every_window_of_an_epoch_occurs_exactly_once(num_windows, data):
    batch_size = data.draw(st.integers(1, num_windows))
    seed = data.draw(SEEDS)
    steps = -(-3 * num_windows // batch_size)
    stream = np.concatenate(
        [batches.train_indices(num_windows, seed, step, batch_size) for step in range(steps)]
    )
    for epoch in range(3):
        seen = stream[epoch * num_windows : (epoch + 1) * num_windows]
        assert np.array_equal(np.sort(seen), np.arange(num_windows))


def test_epochs_and_seeds_have_different_orders():
    orders = {
        tuple(batches.train_indices(100, seed, epoch, 100))
        for seed in range(5)
        for epoch in range(5)
    }
    assert len(orders) == 25


@given(data=st.data(), step=st.integers(0, 10**9))
def test_shards_of_every_divisor_make_up_the_one_host_batch(data, step):
    batch_size = data.draw(st.integers(1, 48))
    windows = windows_of(data.draw(st.integers(batch_size, 100)))
    whole = batches.train_batch(windows, 3, step, batch_size, ignored_id=5)
    for num_shards in (n for n in range(1, batch_size + 1) if batch_size % n == 0):
        parts = [
            batches.train_batch(
                windows, 3, step, batch_size, ignored_id=5, shard=shard, num_shards=num_shards
            )
            for shard in range(num_shards)
        ]
        assert all(part.tokens.shape == (batch_size // num_shards, 4) for part in parts)
        for whole_array, *part_arrays in zip(whole, *parts, strict=True):
            assert np.array_equal(np.concatenate(part_arrays), whole_array)


@given(data=st.data(), micro_batches=st.integers(1, 4), num_shards=st.integers(1, 4))
def test_a_micro_batch_has_the_same_rows_on_any_number_of_hosts(data, micro_batches, num_shards):
    rows = num_shards * data.draw(st.integers(1, 6))
    batch_size = micro_batches * rows
    windows = windows_of(batch_size + data.draw(st.integers(0, 20)))
    whole = batches.train_batch(windows, 3, 7, batch_size).tokens.reshape(micro_batches, rows, 4)
    shards = [
        batches.train_batch(
            windows,
            3,
            7,
            batch_size,
            micro_batches=micro_batches,
            shard=shard,
            num_shards=num_shards,
        ).tokens.reshape(micro_batches, rows // num_shards, 4)
        for shard in range(num_shards)
    ]
    assert np.array_equal(np.concatenate(shards, axis=1), whole)


def test_starting_at_a_step_equals_running_to_it():
    windows = windows_of(37)

    def run(start, stop):
        make = lambda step: batches.train_batch(windows, 11, step, 8)  # noqa: E731
        return [batch.tokens.tolist() for batch in batches.prefetch(make, start, stop, lambda x: x)]

    assert run(13, 30) == run(0, 30)[13:]


def test_batch_holds_the_windows_of_its_indices():
    windows = windows_of(20)
    batch = batches.train_batch(windows, 2, 6, 5)
    indices = batches.train_indices(20, 2, 6, 5)
    assert batch.tokens.dtype == batch.labels.dtype == np.int32
    assert np.array_equal(batch.tokens, indices[:, None] * 4 + np.arange(4))


def test_labels_are_the_tokens_but_for_the_ignored_id():
    windows = windows_of(4)
    free = batches.train_batch(windows, 0, 0, 4)
    assert np.array_equal(free.labels, free.tokens)
    masked = batches.train_batch(windows, 0, 0, 4, ignored_id=6)
    assert np.array_equal(masked.tokens, free.tokens)
    row, column = np.argwhere(free.tokens == 6)[0]
    expected = free.tokens.copy()
    expected[row, column] = -100
    assert IGNORED_LABEL == -100
    assert np.array_equal(masked.labels, expected)


def test_fewer_windows_than_a_batch_is_an_error():
    with pytest.raises(ValueError, match=r"has 7 windows, fewer than training\.batch_size=8"):
        batches.train_batch(windows_of(7), 0, 0, 8)
    assert sorted(batches.train_indices(7, 0, 0, 7)) == list(range(7))


def test_a_batch_that_does_not_divide_over_hosts_is_an_error():
    with pytest.raises(ValueError, match="batch of 8 sequences does not divide over 3 hosts"):
        batches.train_batch(windows_of(9), 0, 0, 8, num_shards=3)
    with pytest.raises(ValueError, match=r"shard 2 is not one of 2 \(0 to 1\)"):
        batches.train_batch(windows_of(9), 0, 0, 8, shard=2, num_shards=2)
    with pytest.raises(ValueError, match="batch of 8 sequences does not divide over 3 hosts"):
        list(batches.evaluation_batches(windows_of(9), 8, num_shards=3))


@given(data=st.data(), count=st.integers(1, 40))
def test_evaluation_gives_every_window_once_and_pads_the_rest(data, count):
    num_shards = data.draw(st.integers(1, 4))
    batch_size = num_shards * data.draw(st.integers(1, 12))
    windows = windows_of(count)
    shards = [
        list(batches.evaluation_batches(windows, batch_size, shard=shard, num_shards=num_shards))
        for shard in range(num_shards)
    ]
    assert {len(shard) for shard in shards} == {-(-count // batch_size)}
    labels = []
    for parts in zip(*shards, strict=True):
        assert all(part.tokens.shape == (batch_size // num_shards, 4) for part in parts)
        labels += [part.labels for part in parts]
    rows = np.concatenate(labels)
    assert np.array_equal(rows[:count], np.arange(count * 4).reshape(count, 4))
    assert (rows[count:] == -100).all()


def test_evaluation_of_some_windows_spreads_them_evenly():
    found = list(batches.evaluation_batches(windows_of(100), 8, max_windows=5, ignored_id=80))
    assert len(found) == 1
    assert found[0].tokens[:5, 0].tolist() == [0, 80, 160, 240, 320]
    assert found[0].labels[:5, 0].tolist() == [0, -100, 160, 240, 320]
    assert (found[0].labels[5:] == -100).all()
    assert len(list(batches.evaluation_batches(windows_of(3), 1, max_windows=50))) == 3


def prefetch_threads() -> int:
    return sum(thread.name == "nfllm-prefetch" for thread in threading.enumerate())


def test_prefetch_applies_make_and_put_in_the_thread_in_order():
    threads = set()

    def put(value):
        threads.add(threading.current_thread().name)
        return value * 10

    assert list(batches.prefetch(lambda step: step + 1, 3, 7, put)) == [40, 50, 60, 70]
    assert threads == {"nfllm-prefetch"}
    assert list(batches.prefetch(lambda step: step, 5, 5, put)) == []
    assert prefetch_threads() == 0


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_prefetch_makes_exactly_depth_ahead(depth):
    made = []
    with batches.prefetch(lambda step: made.append(step), 0, 100, lambda x: x, depth) as items:
        for taken in range(4):
            deadline = time.monotonic() + 60
            while len(made) < taken + depth and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(0.02)
            assert len(made) == taken + depth
            next(items)


def test_prefetch_raises_the_producers_error_in_its_place():
    def make(step):
        if step == 3:
            raise KeyError("step three")
        return step

    items = batches.prefetch(make, 0, 10, lambda x: x)
    assert [next(items), next(items), next(items)] == [0, 1, 2]
    with pytest.raises(KeyError, match="step three"):
        next(items)
    assert prefetch_threads() == 0
    with pytest.raises(StopIteration):
        next(items)


def test_prefetch_does_not_take_a_producers_stop_for_the_end():
    def make(step):
        return step if step < 2 else next(iter(()))

    items = batches.prefetch(make, 0, 10, lambda x: x)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(RuntimeError, match="raised StopIteration"):
        next(items)


def test_prefetch_ends_its_thread_when_the_consumer_stops_early():
    def consume():
        yield from batches.prefetch(lambda step: step, 0, 1000, lambda x: x)

    generator = consume()
    assert [next(generator), next(generator)] == [0, 1]
    assert prefetch_threads() == 1
    generator.close()
    gc.collect()
    assert prefetch_threads() == 0

    dropped = batches.prefetch(lambda step: step, 0, 1000, lambda x: x)
    assert next(dropped) == 0
    assert prefetch_threads() == 1
    del dropped
    gc.collect()
    assert prefetch_threads() == 0

    with batches.prefetch(lambda step: step, 0, 1000, lambda x: x) as items:
        assert next(items) == 0
        assert prefetch_threads() == 1
    assert prefetch_threads() == 0
    assert list(items) == []


def test_prefetch_measures_how_long_the_consumer_waits(monkeypatch):
    """By a clock that goes on by 1 s while an item is made that is waited for, and else stands."""
    asked, now, looks = threading.Semaphore(0), [0.0], itertools.count()

    def look():
        shown = now[0]
        if next(looks) % 2 == 0:  # at the begin of a wait, and not at its end
            asked.release()
        return shown

    def make(step):
        assert asked.acquire(timeout=60)
        now[0] += 1.0
        return step

    monkeypatch.setattr(batches, "time", types.SimpleNamespace(perf_counter=look))
    items = batches.prefetch(make, 0, 4, lambda x: x)
    for step in items:
        assert items.waited_seconds == step + 1
        now[0] += 100.0  # the consumer's own time
    assert items.waited_seconds == 4


def test_prefetch_depth_must_be_positive():
    with pytest.raises(ValueError, match="depth=0 must be at least 1"):
        batches.prefetch(lambda step: step, 0, 1, lambda x: x, depth=0)
