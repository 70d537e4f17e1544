"""Loss on any text: against sums in float64, against the loss of training, and by its command."""

from __future__ import annotations

import dataclasses
import math
import re
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import make_corpus
from trainer import Trainer

import nfllm
from nfllm.config import IGNORED_LABEL
from nfllm.data.batches import Batch
from nfllm.measure.evaluation import validation_texts
from nfllm.run import Run
from nfllm.rundir import RunError

pytestmark = pytest.mark.slow

EVERY = 4


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, compilation_cache: Path) -> Path:
    """A run of eight steps with a context of 32 bytes, saved every four."""
    folder = tmp_path_factory.mktemp("trained")
    make_corpus(folder / "corpus")
    changes = {"checkpoint__every": EVERY, "checkpoint__keep": 5, "evaluation__every": EVERY}
    trainer = Trainer(folder, compilation_cache)
    status, _, err = trainer.run(folder / "run", **changes)
    assert status == 0, err
    return folder / "run"


@pytest.fixture(scope="module")
def run(path: Path) -> Run:
    return nfllm.load_run(path)


def nats_of(run: Run, tokens: list[int]) -> np.ndarray:
    """-log p of every token but the first, from logits in float64."""
    logits_TV = run.model.apply({"params": run.params}, np.array([tokens]))[0]
    logits_TV = np.asarray(logits_TV, np.float64)[:-1]
    top = logits_TV.max(-1, keepdims=True)
    log_probs_TV = logits_TV - top - np.log(np.exp(logits_TV - top).sum(-1, keepdims=True))
    return -log_probs_TV[np.arange(len(tokens) - 1), tokens[1:]]


def test_loss_of_texts(run: Run) -> None:
    """Six documents, the last in three windows of 32 that share 16, of 256 end-of-text."""
    short = ["x = 1\n", "def é():\n    pass\n", "import os\n", "while True: x += 1\n", "a\n"]
    texts = [*short, "".join(f"y{i} = {i}\n" for i in range(8))]
    end = run.tokenizer.end_of_text_id
    expected, num_bytes = [], 0
    for text in texts:
        tokens = [end, *text.encode()]
        num_bytes += len(text.encode())
        expected += [*nats_of(run, tokens[:32])]
        for start in range(16, len(tokens) - 16, 16):
            expected += [*nats_of(run, tokens[start : start + 32])[15:]]
    assert len(expected) == num_bytes
    found = nfllm.evaluate(run, iter(texts), batch_size=2)
    assert found.loss_nats == pytest.approx(np.mean(expected), rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(np.mean(expected)), rel=1e-6)
    # A token is a byte here.
    assert found.bits_per_byte == pytest.approx(np.mean(expected) / math.log(2), rel=1e-6)
    assert (found.num_targets, found.num_bytes, found.num_documents) == (num_bytes, num_bytes, 6)
    low, high = found.interval_nats
    assert low < found.loss_nats < high
    alone = nfllm.evaluate(run, texts[0])
    assert alone.num_documents == 1
    assert math.isnan(alone.interval_nats[0])
    assert str(alone).startswith(f"loss {alone.loss_nats:.4f} nats per token, perplexity")
    assert "(95%" in str(found)


def test_overlap_is_what_a_token_sees(run: Run) -> None:
    text = "".join(f"y{i} = {i}\n" for i in range(12))
    tokens = [run.tokenizer.end_of_text_id, *text.encode()]
    expected = np.concatenate(
        [nats_of(run, tokens[start : start + 32]) for start in range(0, len(tokens) - 1, 31)]
    )
    found = nfllm.evaluate(run, text, overlap=1)
    assert found.loss_nats == pytest.approx(expected.mean(), rel=1e-6)
    assert found.num_targets == len(expected) == len(text)


def test_loss_of_batches_is_that_of_training(run: Run) -> None:
    last = run.metrics.rows["eval"][-1]
    found = nfllm.evaluate(run, run.validation_batches(8, max_windows=20))
    assert found.loss_nats == pytest.approx(last["eval_loss_nats"], rel=1e-6)
    assert found.num_targets == last["eval_tokens"]
    assert (found.num_documents, found.bits_per_byte) == (20, None)


def test_a_column_of_texts_is_texts(run: Run) -> None:
    texts = ["x = 1\n", "import os\n"]
    for kind in (None, object):
        found, expected = (nfllm.evaluate(run, x) for x in (np.array(texts, kind), texts))
        np.testing.assert_equal(dataclasses.asdict(found), dataclasses.asdict(expected))


def test_one_batch_is_one_batch(run: Run) -> None:
    """As a Batch, or as an array of ids; not its tokens, and its labels, as two batches."""
    tokens = np.arange(48).reshape(4, 12)
    for alone in (Batch(tokens, tokens), tokens):
        found, expected = (dataclasses.asdict(nfllm.evaluate(run, x)) for x in (alone, [tokens]))
        np.testing.assert_equal(found, expected)
        assert found["num_documents"] == 4
        rises = [nfllm.head_importance(run, x).rise_LH for x in (alone, [tokens])]
        np.testing.assert_array_equal(rises[0].high, rises[1].high)
    with pytest.raises(
        ValueError, match=r"token ids are \[B, T\], not \[12\]; give tokens\[None\]"
    ):
        nfllm.evaluate(run, tokens[0])


def test_few_documents_have_no_interval_in_words(run: Run) -> None:
    assert "95%" not in str(nfllm.evaluate(run, ["a = 1", "b = 2", "c = 3"]))
    assert "(95% " in str(nfllm.evaluate(run, [f"a = {i}" for i in range(6)]))


@pytest.mark.parametrize("text", ["éa", "日本", "a日"])
def test_the_bytes_of_a_first_token_that_is_part_of_a_character(run: Run, text: str) -> None:
    """Where the first token is no target, it is one byte of this run's tokenizer."""
    data = dataclasses.replace(run.config.data, window="documents")
    documents = dataclasses.replace(run, config=dataclasses.replace(run.config, data=data))
    assert nfllm.evaluate(documents, [text]).num_bytes == len(text.encode()) - 1


def test_masked_labels_are_no_targets(run: Run) -> None:
    tokens = np.arange(24).reshape(2, 12)
    labels = tokens.copy()
    labels[0, 6:], labels[1, :] = IGNORED_LABEL, IGNORED_LABEL
    found = nfllm.evaluate(run, [Batch(tokens, labels)])
    assert found.loss_nats == pytest.approx(nats_of(run, [*range(6)]).mean(), rel=1e-6)
    assert (found.num_targets, found.num_documents) == (5, 1)
    with pytest.raises(ValueError, match="there is no target to score"):
        nfllm.evaluate(run, [Batch(tokens, np.full_like(tokens, IGNORED_LABEL))])


def test_dataset_is_its_validation_documents(run: Run, path: Path) -> None:
    dataset = run.dataset()
    texts = list(validation_texts(dataset))
    files = {file.read_text() for file in (path.parent / "corpus").iterdir()}
    assert len(texts) == dataset.card["splits"]["validation"]["documents"]
    assert set(texts) < files
    np.testing.assert_equal(
        dataclasses.asdict(nfllm.evaluate(run, dataset)),
        dataclasses.asdict(nfllm.evaluate(run, texts)),
    )


@pytest.mark.parametrize(("texts", "overlap"), [([], 1), ([""], 1), (["a"], 0), (["a"], 32)])
def test_bad_input(run: Run, texts: list[str], overlap: int) -> None:
    message = "there is no target" if overlap == 1 else f"overlap={overlap} is outside 1 to 31"
    with pytest.raises(ValueError, match=message):
        nfllm.evaluate(run, texts, overlap=overlap)


def test_texts_and_token_ids_do_not_mix(run: Run) -> None:
    with pytest.raises(ValueError, match="texts and a ndarray cannot be evaluated together"):
        nfllm.evaluate(run, ["ab", np.zeros((1, 4), int)])


def test_sizes_of_batches(run: Run) -> None:
    for score in (run.validation_batches, lambda n: nfllm.evaluate(run, ["ab"], batch_size=n)):
        with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
            score(0)


def test_an_earlier_step(run: Run, path: Path) -> None:
    assert nfllm.steps(path) == [EVERY, 2 * EVERY]
    early = nfllm.load_run(path, step=EVERY)
    assert (early.step, run.step) == (EVERY, 2 * EVERY)
    batches = run.validation_batches(8, max_windows=20)
    for loaded, row in zip((early, run), run.metrics.rows["eval"], strict=True):
        loss = nfllm.evaluate(loaded, batches).loss_nats
        assert loss == pytest.approx(row["eval_loss_nats"], rel=1e-6)
    for odd in (4.0, "4"):
        with pytest.raises(ValueError, match=f"step={odd!r} must be a whole number"):
            nfllm.load_run(path, odd)
    with pytest.raises(RunError, match=r"no checkpoint of step 3; it holds 4, 8 \("):
        nfllm.load_run(path, step=3)
    with pytest.raises(RunError, match="does not exist"):
        nfllm.steps(path / "nowhere")


def test_a_damaged_step_is_not_another(path: Path, tmp_path: Path) -> None:
    shutil.copytree(path, tmp_path / "run")
    for file in (tmp_path / "run" / "checkpoints" / f"step_{EVERY}" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(RunError, match=r"checkpoint of step 4 is damaged .* load another of 4, 8"):
        nfllm.load_run(tmp_path / "run", step=EVERY)


def command(*arguments: object) -> int:
    sys.argv = ["evaluate", *map(str, arguments)]
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("nfllm.evaluate", run_name="__main__")
    return ended.value.code


def test_command(
    run: Run,
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(sys, "argv", [])
    assert command(path) == 0
    assert capsys.readouterr().out == f"step 8  {nfllm.evaluate(run, run.dataset())}\n"
    moved = tmp_path / "moved"
    assert command(path, f"--config.data.data_dir={moved}") == 0
    assert capsys.readouterr().out == f"step 8  {nfllm.evaluate(run, run.dataset())}\n"
    assert list(moved.iterdir())
    texts = ["a = 1\n", "while a: pass\n"]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text)
    assert command(path, f"--config.data.sources={tmp_path}/*.txt", "--step", EVERY) == 0
    early = nfllm.load_run(path, step=EVERY)
    assert capsys.readouterr().out == f"step 4  {nfllm.evaluate(early, texts)}\n"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.data.sourcs=x", "unknown key 'sourcs' .* did you mean 'sources'"),
        ("--config.model.num_layers=3", "unexpected argument .*choose the corpus by --config.d"),
        ("x", "unexpected argument 'x'"),
        ("--config.data.sources=nowhere.txt", "nowhere.txt"),
        ("--step=5", "no checkpoint of step 5; it holds 4, 8"),
        ("--batch_size=0", "batch_size=0 must be at least 1"),
        ("--max_documents=0", "--max_documents 0 must be at least 1"),
        ("--config.data.window=packed", r"data\.window has no effect here: .*data\.sources"),
    ],
)
def test_bad_command(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    argument: str,
    message: str,
) -> None:
    monkeypatch.setattr(sys, "argv", [])
    assert command(path, argument) == 2
    assert re.search(f"error: .*{message}", capsys.readouterr().err)


def test_the_function_stays_where_the_module_is_imported() -> None:
    import nfllm.evaluate
    from nfllm.measure.evaluation import evaluate

    assert nfllm.evaluate is evaluate
