"""Windows over a token file: hand-cut examples, naive loops, and the Hugging Face pipeline."""

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from nfllm.data.python_files import standard_library_files
from nfllm.data.tokenizer import train_bpe
from nfllm.data.tokens import TokenFile, TokenWriter
from nfllm.data.windows import Windows

END = 99
DOCUMENTS = st.lists(st.lists(st.integers(0, 98), max_size=30), min_size=1, max_size=20)


def token_file(documents: list[list[int]], dtype: type = np.uint16) -> TokenFile:
    ids = [token for document in documents for token in (*document, END)]
    offsets = np.cumsum([0, *(len(document) + 1 for document in documents)])
    return TokenFile(np.array(ids, dtype), offsets)


def all_windows(windows: Windows) -> list[list[int]]:
    return windows.gather(np.arange(len(windows))).tolist()


def test_packed_windows_by_hand():
    windows = Windows(token_file([[1, 2, 3], [4], [5, 6, 7, 8]]), 3, "packed")
    assert all_windows(windows) == [[1, 2, 3], [END, 4, END], [5, 6, 7]]
    assert len(windows) == 3
    assert windows.num_tokens == 9
    assert windows.coverage == pytest.approx(9 / 11)


def test_document_windows_by_hand():
    windows = Windows(token_file([[1, 2, 3], [4], [5, 6, 7, 8, 9]]), 2, "documents")
    assert all_windows(windows) == [[1, 2], [5, 6], [7, 8]]
    assert windows.num_tokens == 6
    assert windows.coverage == pytest.approx(6 / 9)


@given(documents=DOCUMENTS, context_length=st.integers(1, 12))
def test_windows_equal_those_of_plain_loops(documents, context_length):
    T = context_length
    joined = [token for document in documents for token in (*document, END)]
    packed = [joined[i : i + T] for i in range(0, len(joined) - T + 1, T)]
    cut = [d[i : i + T] for d in documents for i in range(0, len(d) - T + 1, T)]
    for kind, expected in (("packed", packed), ("documents", cut)):
        assert all_windows(Windows(token_file(documents), T, kind)) == expected


@pytest.mark.parametrize("kind", ["packed", "documents"])
def test_no_full_window(kind):
    windows = Windows(token_file([[1, 2], [3]]), 10, kind)
    assert len(windows) == windows.num_tokens == 0
    assert windows.gather(np.empty(0, np.int64)).shape == (0, 10)


@pytest.mark.parametrize("kind", ["packed", "documents"])
def test_gather_takes_any_order_and_gives_int32(kind):
    large = 2**16 + 5
    windows = Windows(token_file([[1, 2, 3, large]], np.uint32), 2, kind)
    rows = windows.gather(np.array([1, 0, 1]))
    assert rows.dtype == np.int32
    assert rows.tolist() == [[3, large], [1, 2], [3, large]]


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """400 files of the standard library, a tokenizer's file, and their token file."""
    directory = tmp_path_factory.mktemp("real")
    texts = [path.read_bytes().decode() for path in standard_library_files() if path.stat().st_size]
    texts = texts[::-1][:400]
    tokenizer = train_bpe(texts[:40], 1000)
    tokenizer.save(directory / "tokenizer.json")
    with TokenWriter(directory, "train", tokenizer.vocab_size, tokenizer.end_of_text_id) as writer:
        writer.append([text.encode() for text in texts], tokenizer.encode_batch(texts))
    return texts, directory / "tokenizer.json", TokenFile.open(directory, "train", "<u2")


@pytest.mark.parametrize("context_length", [128, pytest.param(1024, marks=pytest.mark.slow)])
def test_document_windows_equal_the_hugging_face_course_pipeline(real, context_length):
    """The pipeline: tokenizer(truncation, max_length, return_overflowing_tokens), full ones kept.

    `transformers` hands these options to the machinery of `tokenizers` that is called here.
    """
    texts, tokenizer_path, file = real
    assert len(texts) == 400
    reference = tokenizers.Tokenizer.from_file(str(tokenizer_path))
    reference.enable_truncation(max_length=context_length, stride=0)
    expected = [
        part.ids
        for encoding in reference.encode_batch(texts)
        for part in (encoding, *encoding.overflowing)
        if len(part.ids) == context_length
    ]
    assert len(expected) > 1000
    assert all_windows(Windows(file, context_length, "documents")) == expected
