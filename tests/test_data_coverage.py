"""What a tokenizer loses of a corpus or does not know, counted by hand."""

import pytest
import tokenizers
from absl import logging
from data_configs import data_config, write_jsonl

import nfllm.data
from nfllm.config import ConfigError
from nfllm.data.coverage import Coverage
from nfllm.data.dataset import remarks
from nfllm.data.tokenizer import END_OF_TEXT, Tokenizer, bytes_tokenizer, train_bpe

PRE = tokenizers.pre_tokenizers


def characters(unknown: str | None, metaspace: bool) -> tokenizers.Tokenizer:
    vocabulary = {piece: i for i, piece in enumerate(["[UNK]", END_OF_TEXT, *"abc", "▁"])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], unk_token=unknown))
    backend.pre_tokenizer = PRE.Metaspace() if metaspace else PRE.Whitespace()
    if metaspace:
        backend.decoder = tokenizers.decoders.Metaspace()
    return backend


@pytest.mark.parametrize("metaspace", [True, False])
def test_lost_characters(metaspace):
    tokenizer = Tokenizer(characters(None, metaspace))
    coverage = Coverage(tokenizer)
    for texts in (["abc ü\n", "日日 a日"], ["ü😀"]):
        coverage.add(texts, tokenizer.encode_batch(texts))
    found = coverage.summary()
    assert (found["characters"], found["lost_characters"], found["lost_most"]) == (13, 6, "日ü😀")
    assert found["unknown_tokens"] == 0


def test_unknown_tokens():
    tokenizer = Tokenizer(characters("[UNK]", metaspace=False))
    coverage = Coverage(tokenizer)
    texts = ["ab xy", "c [UNK]"]  # the brackets and letters are five characters
    coverage.add(texts, tokenizer.encode_batch(texts))
    found = coverage.summary()
    assert (found["tokens"], found["unknown_tokens"], found["lost_characters"]) == (10, 7, 0)


@pytest.mark.parametrize("make", [bytes_tokenizer, lambda: train_bpe(["abc"], 300)])
def test_bytes_lose_nothing(make):
    tokenizer = make()
    coverage = Coverage(tokenizer)
    texts = ["ü 日 \x00\x7f\u200b 😀 \uffff", "<|endoftext|>"]
    coverage.add(texts, tokenizer.encode_batch(texts))
    found = coverage.summary()
    assert (found["lost_characters"], found["unknown_tokens"]) == (0, 0)


def config_of(tmp_path, backend: tokenizers.Tokenizer):
    path = tmp_path / "tokenizer.json"
    backend.save(str(path))
    texts = ["abc " * 20 + f"ü{i}" for i in range(30)]
    source = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    return data_config(
        tmp_path / "data",
        dataset="text_files",
        sources=str(source),
        tokenizer=str(path),
        validation_fraction=0.3,
    )


def test_what_is_lost_or_unknown_of_a_corpus_is_said_each_time(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.get_absl_logger(), "propagate", True)
    config = config_of(tmp_path, characters(None, metaspace=False))
    for _ in range(2):  # preparing, and from the cache
        caplog.clear()
        nfllm.data.load(config, 16)
        assert "no token for 80 of 2,480 characters, which are lost: 'ü" in caplog.text
    config = config_of(tmp_path, characters("[UNK]", metaspace=False))
    [said] = remarks(nfllm.data.load(config, 16).card)
    assert said == "80 of 1,880 tokens (4.3%) are the tokenizer's unknown token"
    words = tokenizers.models.WordLevel({"[UNK]": 0, END_OF_TEXT: 1, "x": 2}, unk_token="[UNK]")
    backend = tokenizers.Tokenizer(words)
    backend.pre_tokenizer = PRE.WhitespaceSplit()
    [said] = remarks(nfllm.data.load(config_of(tmp_path, backend), 16).card)
    assert said.startswith("630 of 630 tokens (100.0%) are the tokenizer's unknown token; was it")


def test_a_tokenizer_that_cannot_encode_the_corpus_is_one_line(tmp_path):
    words = tokenizers.models.WordLevel({END_OF_TEXT: 0, "abc": 1}, unk_token="[UNK]")
    with pytest.raises(ConfigError, match=r"data\.tokenizer=.*Missing \[UNK\].*give its model"):
        nfllm.data.load(config_of(tmp_path, tokenizers.Tokenizer(words)), 16)
