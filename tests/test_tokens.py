"""The token file: what is written is read, ids never wrap, counts and hashes follow the text."""

import numpy as np
import pytest
from data_configs import data_config
from hypothesis import given
from hypothesis import strategies as st

import nfllm.data
from nfllm.data.python_files import standard_library
from nfllm.data.splits import digest, uniform
from nfllm.data.tokens import TokenFile, TokenWriter, token_dtype


def write(directory, documents, *, vocab_size=300, end=299):
    with TokenWriter(directory, "train", vocab_size, end) as writer:
        texts, ids = zip(*documents, strict=True) if documents else ((), ())
        writer.append(texts, [np.array(document, np.int32) for document in ids])
        return writer.statistics()


@given(
    documents=st.lists(st.lists(st.integers(0, 70_000), max_size=20), max_size=20),
    vocab_size=st.sampled_from([70_001, 200_000]),
)
def test_what_is_written_is_read(tmp_path_factory, documents, vocab_size):
    directory = tmp_path_factory.mktemp("tokens")
    write(directory, [(b"", ids) for ids in documents], vocab_size=vocab_size, end=70_000)
    file = TokenFile.open(directory, "train", token_dtype(vocab_size))
    assert file.num_documents == len(documents)
    assert file.offsets.dtype == np.int64
    for i, ids in enumerate(documents):
        found = file.tokens[file.offsets[i] : file.offsets[i + 1]]
        assert found.tolist() == [*ids, 70_000]
    assert file.offsets[-1] == len(file.tokens)


def test_token_type_is_the_smallest_that_holds_every_id(tmp_path):
    assert token_dtype(65_536) == "<u2"
    assert token_dtype(65_537) == "<u4"
    write(tmp_path, [(b"", [0, 65_535])], vocab_size=65_536, end=1)
    assert (tmp_path / "train.tokens").stat().st_size == 3 * 2
    file = TokenFile.open(tmp_path, "train", "<u2")
    assert file.tokens.tolist() == [0, 65_535, 1]
    assert isinstance(file.tokens, np.memmap)


def test_statistics_by_hand(tmp_path):
    found = write(tmp_path, [("né".encode(), [1, 2]), (b"abcde", [3])])
    assert {key: found[key] for key in ("documents", "bytes", "tokens", "bytes_per_token")} == {
        "documents": 2,
        "bytes": 8,
        "tokens": 3,
        "bytes_per_token": round(8 / 3, 4),
    }


def test_content_hash_follows_texts_and_their_order_alone(tmp_path):
    base = [(b"one", [1]), (b"two", [2])]
    hashes = {
        name: write(tmp_path, documents)["content_sha256"]
        for name, documents in {
            "base": base,
            "byte": [(b"one", [1]), (b"twO", [2])],
            "order": base[::-1],
            "boundary": [(b"onet", [1]), (b"wo", [2])],
            "tokens": [(b"one", [7]), (b"two", [8, 9])],
        }.items()
    }
    assert hashes.pop("tokens") == hashes["base"]
    assert len(set(hashes.values())) == 4


def test_token_files_hold_the_encoded_documents_of_their_split(tmp_path):
    """Against source files that are read and split here without the data layer."""
    roots = [standard_library() / name for name in ("asyncio", "email", "json")]
    files = sorted(path for root in roots for path in root.rglob("*.py"))
    config = data_config(
        tmp_path,
        dataset="python_source",
        sources=",".join(map(str, roots)),
        vocab_size=300,
        validation_fraction=0.2,
    )
    dataset = nfllm.data.load(config, 32)
    texts = []
    for path in files:
        text = path.read_bytes()
        if text and text not in texts:
            texts.append(text)
    expected = {"train": [], "validation": []}
    for text in texts:
        split = "validation" if uniform(digest(text), "validation") < 0.2 else "train"
        expected[split].append(text)

    for split, documents in expected.items():
        ids = [
            token
            for ids in dataset.tokenizer.encode_batch([text.decode() for text in documents])
            for token in (*ids.tolist(), dataset.tokenizer.end_of_text_id)
        ]
        windows = getattr(dataset, split)
        assert len(windows) == len(ids) // 32
        found = windows.gather(np.arange(len(windows)))
        assert np.array_equal(found.ravel(), ids[: len(windows) * 32])
        counts = dataset.card["splits"][split]
        assert counts["documents"] == len(documents)
        assert counts["bytes"] == sum(map(len, documents))
        assert counts["tokens"] == len(ids) - len(documents)
    documents = dataset.card["documents"]
    assert documents["read"] == len(files)
    assert documents["duplicate"] + documents["empty"] == len(files) - len(texts)


def test_a_writer_that_fails_leaves_no_offsets(tmp_path):
    def fail() -> None:
        with TokenWriter(tmp_path, "train", 300, 299) as writer:
            writer.append([b"one", b"two"], [np.array([1])])

    with pytest.raises(ValueError, match="shorter"):
        fail()
    assert not (tmp_path / "train.offsets").exists()
