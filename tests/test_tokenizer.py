"""Tokenizers against the reference library's own trainer and encoder, and against plain bytes."""

import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from nfllm.data import tokenizer as tokenizer_module
from nfllm.data.python_files import standard_library
from nfllm.data.tokenizer import END_OF_TEXT, Tokenizer, bytes_tokenizer, train_bpe

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
# Words and white space of all kinds, with a place to cut in every 20 characters.
WORDS = st.sampled_from(["return", "x1", "(self,", "n't", "é∑", "__init__", "'s", "%d:"])
SPACES = st.sampled_from([" ", "  ", "\n", "\n    ", "\t", "\n\n        "])
CODE = st.lists(st.builds(str.__add__, WORDS, SPACES), min_size=30, max_size=60).map("".join)


@pytest.fixture(scope="module")
def sources() -> list[str]:
    return [path.read_text() for path in sorted((standard_library() / "email").glob("*.py"))]


@pytest.fixture(scope="module")
def bpe(sources: list[str]) -> Tokenizer:
    return train_bpe(sources, 600)


def test_bpe_equals_the_reference_trainer(sources, bpe):
    reference = tokenizers.ByteLevelBPETokenizer()
    reference.train_from_iterator(
        sources, vocab_size=600, min_frequency=0, special_tokens=[END_OF_TEXT], show_progress=False
    )
    for text in sources[:5]:
        assert bpe.encode(text).tolist() == reference.encode(text).ids
    assert bpe.vocab_size == reference.get_vocab_size() == 600
    assert bpe.end_of_text_id == reference.token_to_id(END_OF_TEXT) == 0


def test_bpe_training_is_deterministic(sources, bpe):
    assert train_bpe(iter(sources), 600).fingerprint == bpe.fingerprint
    assert train_bpe(sources, 601).fingerprint != bpe.fingerprint
    assert train_bpe([*sources[:-1], sources[-1] * 50], 600).fingerprint != bpe.fingerprint


@given(text=TEXT)
def test_decode_undoes_encode(bpe, text):
    for tokenizer in (bpe, bytes_tokenizer()):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@given(text=TEXT)
def test_bytes_are_the_bytes(text):
    tokenizer = bytes_tokenizer()
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert ids.tolist() == list(text.encode())
    assert (tokenizer.vocab_size, tokenizer.end_of_text_id) == (257, 256)
    # What another reader of the saved tokenizer.json would get.
    assert ids.tolist() == tokenizer._backend.encode(text, add_special_tokens=False).ids


def test_a_written_end_of_text_is_ordinary_text(bpe, tmp_path):
    text = f"sep = '{END_OF_TEXT}'"
    bpe.save(tmp_path / "tokenizer.json")
    for tokenizer in (bpe, bytes_tokenizer(), Tokenizer.load(tmp_path / "tokenizer.json")):
        ids = tokenizer.encode(text)
        assert tokenizer.end_of_text_id not in ids
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode([tokenizer.end_of_text_id]) == END_OF_TEXT


def test_save_and_load(bpe, sources, tmp_path):
    bpe.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.fingerprint == bpe.fingerprint
    assert loaded.encode(sources[0]).tolist() == bpe.encode(sources[0]).tolist()
    bytes_tokenizer().save(tmp_path / "bytes.json")
    assert Tokenizer.load(tmp_path / "bytes.json").encode("é").tolist() == [0xC3, 0xA9]


def test_fingerprint_changes_with_one_merge(bpe, tmp_path):
    bpe.save(tmp_path / "tokenizer.json")
    definition = json.loads((tmp_path / "tokenizer.json").read_text())
    definition["model"]["merges"].pop()
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    assert Tokenizer.load(tmp_path / "tokenizer.json").fingerprint != bpe.fingerprint


def test_a_loaded_tokenizer_neither_truncates_nor_pads_nor_adds_tokens(bpe, sources, tmp_path):
    backend = tokenizers.Tokenizer.from_str(bpe._backend.to_str())
    backend.enable_truncation(max_length=5)
    backend.enable_padding(length=9)
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, 0)]
    )
    assert len(backend.encode(sources[0]).ids) == 9
    backend.save(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.encode(sources[0]).tolist() == bpe.encode(sources[0]).tolist()
    assert loaded.encode("").tolist() == []


@pytest.mark.parametrize("name", ["</s>", "<|end_of_text|>"])
def test_end_of_text_of_other_tokenizers(name, tmp_path):
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    backend.add_special_tokens(["<s>", name])
    backend.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path / "tokenizer.json").end_of_text_id == 3


def test_vocabulary_size_reaches_past_holes(tmp_path):
    vocabulary = {"a": 0, "b": 70_000, END_OF_TEXT: 1}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    assert Tokenizer(backend).vocab_size == 70_001
    assert Tokenizer(backend).encode("ab").tolist() == [0, 70_000]


def test_what_is_no_tokenizer_is_named(tmp_path):
    path = tmp_path / "tokenizer.json"
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        Tokenizer.load(path)
    path.write_text('{"model": 3}')
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a Hugging Face tokenizer\.json"):
        Tokenizer.load(path)
    tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0}, merges=[])).save(str(path))
    with pytest.raises(
        ValueError, match=r"tokenizer\.json: the tokenizer has no end-of-text token"
    ):
        Tokenizer.load(path)


@given(texts=st.lists(CODE, min_size=1, max_size=3))
def test_a_long_text_encodes_as_if_it_were_short(bpe, texts):
    expected = [encoding.ids for encoding in bpe._backend.encode_batch(texts)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_module, "_PIECE_CHARACTERS", 20)
        patch.setattr(tokenizer_module, "_GROUP_CHARACTERS", 50)
        pieces = [tokenizer_module._pieces(text) for text in texts]
        found = bpe.encode_batch(texts)
    assert max(len(piece) for parts in pieces for piece in parts) <= 40
    assert min(map(len, pieces)) > 2
    assert [ids.tolist() for ids in found] == expected


def test_a_long_text_without_a_space_is_cut_anyway(bpe, monkeypatch):
    monkeypatch.setattr(tokenizer_module, "_PIECE_CHARACTERS", 20)
    text = "abé" * 40
    assert [len(piece) for piece in tokenizer_module._pieces(text)] == [40, 40, 40]
    assert bpe.decode(bpe.encode(text)) == text
