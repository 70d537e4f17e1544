"""Tokenizers against the reference library's own trainer and encoder, and against plain bytes."""

import json

import numpy as np
import pytest
import tokenizers
from absl import logging
from hypothesis import given
from hypothesis import strategies as st

from nfllm.data import tokenizer as tokenizer_module
from nfllm.data.python_files import standard_library
from nfllm.data.tokenizer import (
    END_OF_TEXT,
    Tokenizer,
    UnencodableTextError,
    bytes_tokenizer,
    train_bpe,
)

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


def test_pieces_are_cut_only_where_words_end():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_module, "_PIECE_CHARACTERS", 20)
        assert tokenizer_module._pieces("abé" * 40) == ["abé" * 40]
        # For the splitting rule, unlike for Python, a unit separator is no space.
        text = "!\x1f" * 40 + " x" * 40
        pieces = tokenizer_module._pieces(text)
    assert len(pieces) > 2
    assert "".join(pieces) == text
    assert all(piece[0] == " " for piece in pieces[1:])


WORD_PIECES = [
    "a",
    "b",
    "ab",
    "##b",
    "##a",
    "!",
    "##!",
    "x",
    "▁",
    "▁a",
    "a▁",
    " ",
    "b a",
    "Ġ",
    "bĠ",
]


def backend_of(kind: str, specials: list[str]) -> tokenizers.Tokenizer:
    """A tokenizer of each model type, in whose vocabulary the special tokens are."""
    models = tokenizers.models
    known = ["[UNK]", *specials, *dict.fromkeys("".join(specials)), *WORD_PIECES]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(known))}
    if kind == "BPE":  # merges up to every special token, as a corpus that spells them gives
        merges = []
        for special in specials:
            for stop in range(1, len(special)):
                vocabulary.setdefault(special[: stop + 1], len(vocabulary))
                merges.append((special[:stop], special[stop]))
        merges += [("a", "b"), ("▁", "a"), ("a", "▁")]
        model = models.BPE(vocabulary, list(dict.fromkeys(merges)), unk_token="[UNK]")
    elif kind == "BPE_ignore_merges":
        model = models.BPE(vocabulary, [("a", "b")], unk_token="[UNK]", ignore_merges=True)
    elif kind == "Unigram":
        model = models.Unigram([(piece, -0.1 * len(vocabulary)) for piece in vocabulary], 0, False)
    elif kind == "WordPiece":
        model = models.WordPiece(vocabulary, unk_token="[UNK]")
    else:
        model = models.WordLevel(vocabulary, unk_token="[UNK]")
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return backend


KINDS = ["BPE", "BPE_ignore_merges", "Unigram", "WordPiece", "WordLevel"]


@pytest.mark.parametrize("added", ["special", "plain", "not_added"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_special_token_in_a_text_is_ordinary_characters_of_every_model(kind, added):
    backend = backend_of(kind, [END_OF_TEXT, "<s>"])
    special = [tokenizers.AddedToken(END_OF_TEXT, special=True, normalized=False)]
    if added == "special":
        backend.add_special_tokens([*special, "<s>"])
    elif added == "plain":
        backend.add_tokens([END_OF_TEXT])
    tokenizer = Tokenizer(backend)
    end = tokenizer.end_of_text_id
    start = backend.token_to_id("<s>")
    for text in (END_OF_TEXT, f"a {END_OF_TEXT} b", f"a{END_OF_TEXT}{END_OF_TEXT}b", "<s> a <s>"):
        ids = tokenizer.encode(text)
        assert len(ids)
        assert end not in ids, text
        assert added != "special" or start not in ids, text
    assert tokenizer.decode([end]) == END_OF_TEXT
    # Other texts encode as the library encodes them.
    plain = backend.encode("ab a b abx !", add_special_tokens=False).ids
    assert tokenizer.encode("ab a b abx !").tolist() == plain


PRE = tokenizers.pre_tokenizers
SPLITS = {
    "gpt2": PRE.ByteLevel(add_prefix_space=False),
    "prefix": PRE.ByteLevel(add_prefix_space=True),
    "no_words": PRE.ByteLevel(add_prefix_space=False, use_regex=False),
    "none": None,
    "metaspace": PRE.Metaspace(),
    "metaspace_first": PRE.Metaspace(prepend_scheme="first"),
    "whitespace": PRE.Whitespace(),
    "lines": PRE.Split(tokenizers.Regex(r"[^\n]+\n?"), "isolated"),
}
NORMALIZERS = {
    "none": None,
    "nfc": tokenizers.normalizers.NFC(),
    "llama": tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    ),
    "nfkc": tokenizers.normalizers.NFKC(),
}


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("kind", ["BPE", "Unigram", "WordPiece"])
def test_a_long_text_gives_the_ids_of_one_piece(kind, split, normalizer, monkeypatch):
    """Whatever the tokenizer; only some may be given pieces."""
    monkeypatch.setattr(tokenizer_module, "_PIECE_CHARACTERS", 5)
    backend = backend_of(kind, [END_OF_TEXT])
    if SPLITS[split] is not None:
        backend.pre_tokenizer = SPLITS[split]
    else:
        backend = tokenizers.Tokenizer(backend.model)
    if NORMALIZERS[normalizer] is not None:
        backend.normalizer = NORMALIZERS[normalizer]
    backend.add_tokens(["b a", "  ", tokenizers.AddedToken("x", rstrip=True)])
    text = "ab a b a  x   ab!\n a b  a x ab\x1fa é́ b a\n\nab x  \n" * 3
    expected = backend.encode(text, add_special_tokens=False).ids
    assert Tokenizer(backend).encode(text).tolist() == expected


def test_pieces_are_used_where_they_may_be(bpe, monkeypatch):
    monkeypatch.setattr(tokenizer_module, "_pieces", lambda text: ["a", "b"])
    assert len(bpe.encode("long text")) == 2
    backend = tokenizers.Tokenizer.from_str(bpe._backend.to_str())
    backend.add_tokens(["two words"])
    assert len(Tokenizer(backend).encode("long text")) != 2


def test_a_cut_makes_no_single_word(bpe, monkeypatch):
    """In "z ab" the token " ab" is no word of its own; after a cut before its space it would be."""
    monkeypatch.setattr(tokenizer_module, "_PIECE_CHARACTERS", 5)
    backend = tokenizers.Tokenizer.from_str(bpe._backend.to_str())
    backend.add_tokens([tokenizers.AddedToken(" ab", single_word=True)])
    text = "z ab " * 20
    expected = backend.encode(text, add_special_tokens=False).ids
    assert Tokenizer(backend).encode(text).tolist() == expected


@pytest.mark.parametrize("dropout", [0.3, 1.0])
def test_dropout_is_off(bpe, sources, dropout, tmp_path):
    definition = json.loads(bpe._backend.to_str())
    definition["model"]["dropout"] = dropout
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(definition), encoding="utf-8-sig")  # as editors of Windows save it
    loaded = Tokenizer.load(path)
    assert loaded.fingerprint == bpe.fingerprint
    assert loaded.encode(sources[0]).tolist() == bpe.encode(sources[0]).tolist()
    loaded.save(path)
    assert json.loads(path.read_text())["model"]["dropout"] is None


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(b'{"version": "\xff"}')
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a Hugging Face tokenizer\.json"):
        Tokenizer.load(tmp_path / "tokenizer.json")


def alphabet_tokenizer(unknown: str | None) -> tokenizers.Tokenizer:
    vocabulary = {piece: i for i, piece in enumerate(["[UNK]", END_OF_TEXT, *"abc", "▁"])}
    model = tokenizers.models.BPE(vocabulary, [], unk_token=unknown)
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = PRE.Metaspace()
    backend.decoder = tokenizers.decoders.Metaspace()
    return backend


def test_lost_and_unknown_characters_of_a_text_are_said(bpe, caplog, monkeypatch):
    monkeypatch.setattr(logging.get_absl_logger(), "propagate", True)
    partial = Tokenizer(alphabet_tokenizer(None))
    for tokenizer in (bpe, bytes_tokenizer(), partial):
        tokenizer.encode("abc a\n")
        bytes_tokenizer().encode("日 ü")
        bpe.encode("日 ü")
    assert not caplog.records
    assert partial.decode(partial.encode("a日b üb")) == "ab b"
    assert "are lost: '日ü'" in caplog.text
    caplog.clear()
    Tokenizer(alphabet_tokenizer("[UNK]")).encode("a日b")
    assert "1 of 4 tokens are the tokenizer's unknown token" in caplog.text


def test_the_bytes_of_tokens_add_up_to_those_of_the_text(bpe):
    text = "def f():\n    return 'é日本 \ufffd'\n"
    for tokenizer in (bytes_tokenizer(), bpe):
        assert sum(map(tokenizer.num_bytes, tokenizer.encode(text))) == len(text.encode())


def test_the_bytes_of_a_token_that_is_named_by_its_characters():
    words = ["\ufffd", "\ufffdb\ufffd", "é", "<0xE6>"]
    model = tokenizers.models.Unigram([(w, 0.0) for w in [END_OF_TEXT, *words]], 0, False)
    backend = tokenizers.Tokenizer(model)
    backend.decoder = tokenizers.decoders.ByteFallback()
    tokenizer = Tokenizer(backend)
    assert [tokenizer.num_bytes(i) for i in (1, 2, 3, 4)] == [3, 7, 2, 1]


def test_a_text_that_cannot_be_encoded(bpe):
    model = tokenizers.models.WordLevel({"a": 0, END_OF_TEXT: 1}, unk_token="?")
    with pytest.raises(
        UnencodableTextError, match=r"Missing \[UNK\].* give its model an unknown token"
    ):
        Tokenizer(tokenizers.Tokenizer(model)).encode("b")


@pytest.mark.parametrize("kind", ["bpe", "bytes"])
def test_half_of_a_surrogate_pair_is_named(bpe, kind):
    tokenizer = bpe if kind == "bpe" else bytes_tokenizer()
    with pytest.raises(UnencodableTextError, match=r"character 1 of a text is '\\ud800', half"):
        tokenizer.encode("a\ud800b")


def test_a_panic_of_the_library_is_an_error_in_a_line(sources):
    class Panic(BaseException):
        """As pyo3's, which is no Exception."""

    class Encoder:
        def encode_batch_fast(self, texts: list[str], add_special_tokens: bool) -> None:
            raise Panic("AddedVocabulary bad split")

    tokenizer = train_bpe(sources, 300)
    tokenizer.__dict__["_encoder"] = Encoder()
    with pytest.raises(UnencodableTextError, match=r"cannot encode a text \(AddedVocabulary bad"):
        tokenizer.encode("a")
