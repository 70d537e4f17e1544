"""Tokenizers: byte-level BPE trained on the corpus, any `tokenizer.json`, or plain bytes.

All three are Hugging Face `tokenizers` files, so that other tools can open the `tokenizer.json` of
a run directory.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging
from etils import epath

from nfllm.data.special_tokens import special_names, unknown_name, without_special_tokens

if TYPE_CHECKING:
    import tokenizers

END_OF_TEXT = "<|endoftext|>"
# Names of the end-of-text token in published tokenizers, in the order in which they are tried.
_END_OF_TEXT_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[SEP]")
# The library needs 100 bytes or more of memory for each token. So long texts are encoded in pieces,
# where that changes no id, and a limited number of pieces at a time.
_PIECE_CHARACTERS = 1 << 17
_GROUP_CHARACTERS = 1 << 20
_PLACE_TO_CUT = re.compile(r"(?<!\s)[ \t\n\r]")


class UnencodableTextError(ValueError):
    """A text that a tokenizer cannot encode."""


_FALLBACK = re.compile(r"<0x[0-9A-F]{2}>")


class Tokenizer:
    """Text to token ids and back.

    BPE dropout is off, so that encoding is deterministic.

    Attributes:
      vocab_size: one more than the largest id.
      end_of_text_id: the token that separates documents.
      unknown_id: the unknown token; None if there is none.
      fingerprint: SHA-256 of the tokenizer's definition.

    Example:
      >>> tokenizer = bytes_tokenizer()
      >>> tokenizer.encode("ab").tolist(), tokenizer.decode([97, 98])
      ([97, 98], 'ab')
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        backend.no_truncation()
        backend.no_padding()
        definition = json.loads(backend.to_str())
        if definition["model"].get("dropout"):
            definition["model"]["dropout"] = None
            backend = backend.from_str(json.dumps(definition))
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self._backend = backend
        self._end_of_text = _end_of_text(vocabulary)
        self.end_of_text_id = vocabulary[self._end_of_text]
        self.vocab_size = max(vocabulary.values()) + 1
        unknown = unknown_name(definition)
        self.unknown_id = None if unknown is None else vocabulary.get(unknown)
        canonical = json.dumps(definition, sort_keys=True)
        self.fingerprint = hashlib.sha256(canonical.encode()).hexdigest()
        self._is_bytes = canonical == _bytes_definition()

    @functools.cached_property
    def _encoder(self) -> tokenizers.Tokenizer:
        """A backend that reads special tokens spelled out in a text as ordinary characters."""
        definition = json.loads(self._backend.to_str())
        names = special_names(definition, self._end_of_text)
        definition = without_special_tokens(definition, names)
        encoder = self._backend.from_str(json.dumps(definition))
        encoder.encode_special_tokens = True
        return encoder

    @functools.cached_property
    def _can_be_cut(self) -> bool:
        """Whether a text may be cut before a space that follows another character.

        With GPT-2's splitting rule no word extends across such a position. With other rules, a
        prefix before a text, or most normalizers, cutting there could change ids.
        """
        definition = json.loads(self._backend.to_str())
        words = definition["pre_tokenizer"] or {}
        return (
            (definition["normalizer"] or {"type": "NFC"})["type"] == "NFC"
            and words.get("type") == "ByteLevel"
            and words.get("use_regex", True)
            and not words["add_prefix_space"]
            and not any(map(_extends_across_spaces, definition["added_tokens"]))
        )

    def encode(self, text: str) -> np.ndarray:
        """Token ids of `text`, int32 [n]; no special token is added.

        There is a warning about characters that have no token, and about unknown tokens.

        Raises:
          UnencodableTextError: the text has half of a surrogate pair, or a part for which the
            vocabulary has neither a token nor an unknown token.
        """
        ids = self.encode_batch([text])[0]
        if self._is_partial:
            lost = [c for c in dict.fromkeys(text) if not c.isspace() and self.loses(c)]
            unknown = int(np.count_nonzero(ids == self.unknown_id))
            if lost:
                logging.warning(
                    "the tokenizer has no token for these characters, which are lost: %r",
                    "".join(lost),
                )
            if unknown:
                logging.warning(
                    "%d of %d tokens are the tokenizer's unknown token", unknown, len(ids)
                )
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of every text, on all cores."""
        for text in texts:
            _check_unicode(text)
        if self._is_bytes:
            return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in texts]
        pieces = [_pieces(text) if self._can_be_cut else [text] for text in texts]
        encoded = self._encode_pieces([piece for parts in pieces for piece in parts])
        return [np.concatenate([next(encoded) for _ in parts]) for parts in pieces]

    def _encode_pieces(self, pieces: list[str]) -> Iterator[np.ndarray]:
        start = 0
        while start < len(pieces):
            size, stop = 0, start
            while stop < len(pieces) and size < _GROUP_CHARACTERS:
                size, stop = size + len(pieces[stop]), stop + 1
            group = pieces[start:stop]
            try:
                encodings = self._encoder.encode_batch_fast(group, add_special_tokens=False)
            except BaseException as error:
                # The library raises plain Exceptions; its Rust panics are BaseExceptions.
                if isinstance(error, KeyboardInterrupt):
                    raise
                raise UnencodableTextError(
                    f"the tokenizer cannot encode a text ({error}); give its model an unknown token"
                ) from error
            for encoding in encodings:
                yield np.array(encoding.ids, np.int32)
            start = stop

    def loses(self, character: str) -> bool:
        """Whether a character becomes no token, or only tokens of spaces."""
        try:
            ids = self.encode_batch([character])[0]
        except UnencodableTextError:  # by WordLevel, whose tokens are words
            return False
        return not any(self.decode([i]).strip() for i in ids)

    @functools.cached_property
    def _is_partial(self) -> bool:
        """Whether some characters have no token, as tested on a private-use character."""
        try:
            ids = self.encode_batch(["\U000f0000"])[0]
        except UnencodableTextError:
            return True
        return self.unknown_id in ids or self.loses("\U000f0000")

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids, special tokens included."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=False)

    def num_bytes(self, token_id: int) -> int:
        """Number of UTF-8 bytes that a token stands for at the start of a text.

        The token may be part of a character. Some tokenizers drop a leading space there.
        """
        text = self.decode([token_id])
        if "\ufffd" not in text:
            return len(text.encode())
        name = str(self._backend.id_to_token(int(token_id)))
        if _FALLBACK.fullmatch(name):
            return 1
        # Byte-level tokens are named by one letter for each byte.
        return len(name) if set(name) <= set(_byte_characters()) else len(text.encode())

    def save(self, path: epath.PathLike) -> None:
        """Writes `tokenizer.json`."""
        epath.Path(path).write_text(self._backend.to_str(pretty=True), encoding="utf-8")

    @classmethod
    def load(cls, path: epath.PathLike) -> Tokenizer:
        """Reads a `tokenizer.json`.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: it is not a tokenizer, or has no end-of-text token.
        """
        import tokenizers

        definition = epath.Path(path).read_bytes()
        try:
            backend = tokenizers.Tokenizer.from_str(definition.decode("utf-8-sig"))
        except Exception as error:
            raise ValueError(f"{path} is not a Hugging Face tokenizer.json: {error}") from error
        try:
            return cls(backend)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def bytes_tokenizer() -> Tokenizer:
    """The tokenizer whose ids are the bytes of UTF-8; end-of-text is 256."""
    return Tokenizer(_bytes_backend())


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE with GPT-2's splitting rule, trained on `texts`; end-of-text is 0.

    The vocabulary is smaller than `vocab_size` if the texts have no more pairs to merge.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=_byte_characters(),
        show_progress=False,
    )
    backend.train_from_iterator((piece for text in texts for piece in _pieces(text)), trainer)
    return Tokenizer(backend)


def _end_of_text(vocabulary: dict[str, int]) -> str:
    for name in _END_OF_TEXT_NAMES:
        if name in vocabulary:
            return name
    raise ValueError(
        f"the tokenizer has no end-of-text token; add one under one of the names "
        f"{', '.join(_END_OF_TEXT_NAMES)}"
    )


def _byte_characters() -> list[str]:
    """The printable character by which byte-level BPE represents each byte (Radford et al. 2019).

    Bytes that are printable in Latin-1 represent themselves; the others get characters from U+0100.
    """
    shown = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(0x100, 0x200))
    return [chr(byte if byte in shown else next(hidden)) for byte in range(256)]


def _bytes_backend() -> tokenizers.Tokenizer:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    vocabulary = {character: byte for byte, character in enumerate(_byte_characters())}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([END_OF_TEXT])
    return backend


def _bytes_definition() -> str:
    return json.dumps(json.loads(_bytes_backend().to_str()), sort_keys=True)


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UnencodableTextError(
            f"character {error.start} of a text is {text[error.start]!r}, half of a surrogate "
            "pair, which stands for no character; replace it, as by "
            "text.encode('utf-8', 'replace').decode()"
        ) from error


def _extends_across_spaces(token: dict[str, Any]) -> bool:
    content = token["content"]
    # A single word is found only where its neighbours are no letters: a cut would remove one.
    starts_with_space = token["single_word"] and content[:1].isspace()
    return token["rstrip"] or starts_with_space or re.search(r"\S\s", content) is not None


def _pieces(text: str) -> list[str]:
    """Cuts a long text into pieces, at positions where that changes no id."""
    pieces, start = [], 0
    while len(text) - start > 2 * _PIECE_CHARACTERS:
        place = _PLACE_TO_CUT.search(text, start + _PIECE_CHARACTERS)
        if place is None:
            break
        pieces.append(text[start : place.start()])
        start = place.start()
    return [*pieces, text[start:]]
