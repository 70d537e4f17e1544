"""Text generation: tokens are drawn one after the other, each given all tokens before it.

Within the context length, keys and values of earlier tokens are cached (`nfllm.model.cache`).
Beyond it each token is drawn given the last `context_length` tokens, at positions from 0. Their
positions, and so their keys and values, change with every step, which is a full forward pass. A
model without keys and values to cache (`model.mixer="regla"`) always takes full forward passes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from numpy.typing import ArrayLike

from nfllm.measure.sampling import Sampling, as_whole, make_sampling, sample
from nfllm.model.cache import CACHE, empty_cache, move
from nfllm.model.decoder import Decoder
from nfllm.model.parameters import Params, Variables
from nfllm.model.token_ids import check_token_ids
from nfllm.run import Run

# Prompts are padded to a power of two, at least this, so that few lengths are compiled.
_FEWEST_POSITIONS = 16

Text = TypeVar("Text", str, list[str])


def generate(
    run: Run,
    prompt: Text,
    *,
    max_tokens: int = 100,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> Text:
    """The text that follows a prompt, until the model ends it or `max_tokens` are drawn.

    Example:
      >>> import nfllm
      >>> run = nfllm.load_run("runs/default")
      >>> text = nfllm.generate(run, "def f(", max_tokens=20, temperature=0.8, top_k=40)

    Args:
      run: the run.
      prompt: one text, or a list of texts, which are continued as one batch.
      max_tokens: maximum number of tokens to draw for each prompt. Beyond the model's context a
        token is drawn given the last `context_length` tokens; a warning says so.
      temperature: logits are divided by it; 0 always chooses the most probable token.
      top_k: draw only from this number of most probable tokens; None: from all.
      top_p: draw only from the smallest set of most probable tokens whose probabilities add up to
        at least this; None: from all.
      seed: random seed; a prompt's text depends on it and on the prompt's index in the list.

    Returns:
      The text without its prompt and without the end-of-text token; a list for a list.

    Raises:
      ValueError: a prompt has no token or more than the context holds, an option is outside its
        limits, or the model's logits are not finite.
      RunError: the run has no tokenizer; `generate_ids` takes token ids.
    """
    if isinstance(prompt, str):
        return generate(
            run, [prompt], max_tokens=max_tokens, temperature=temperature, top_k=top_k,
            top_p=top_p, seed=seed,
        )[0]  # fmt: skip
    prompts = [run.tokenizer.encode(text) for text in prompt]
    written = generate_ids(
        run.model, run.params, prompts, max_tokens=max_tokens, temperature=temperature,
        top_k=top_k, top_p=top_p, seed=seed, end_of_text_id=run.tokenizer.end_of_text_id,
    )  # fmt: skip
    decode = run.tokenizer.decode
    return [_following(decode, *pair) for pair in zip(prompts, written, strict=True)]


def generate_ids(
    model: Decoder,
    params: Params,
    prompts: Sequence[ArrayLike],
    *,
    max_tokens: int = 100,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    end_of_text_id: int | None = None,
) -> list[np.ndarray]:
    """`generate` on token ids, of a model with or without a tokenizer.

    Args:
      model: the model.
      params: its parameters.
      prompts: token ids of each prompt.
      max_tokens: as in `generate`.
      temperature: as in `generate`.
      top_k: as in `generate`.
      top_p: as in `generate`.
      seed: as in `generate`.
      end_of_text_id: a token that ends a text and is not part of it; None: no token does.

    Returns:
      int32 [n] for each prompt, with n at most `max_tokens`.
    """
    if not 1 <= as_whole("max_tokens", max_tokens) < 2**31:
        raise ValueError(f"max_tokens={max_tokens} is outside 1 to 2**31 - 1")
    if not 0 <= as_whole("seed", seed) < 2**32:
        raise ValueError(f"seed={seed} is outside 0 to 2**32 - 1")
    sampling = make_sampling(temperature, top_k, top_p)
    context_length = model.config.context_length
    texts = [np.asarray(prompt) for prompt in prompts]
    for number, text in enumerate(texts):
        _check_prompt(text, f"prompt {number}" if len(texts) > 1 else "the prompt", model)
    if not texts:
        return []
    request = _Request(
        keys_B=jax.random.split(jax.random.key(seed), len(texts)),
        max_tokens=jnp.int32(max_tokens),
        end_of_text=jnp.int32(-1 if end_of_text_id is None else end_of_text_id),
        sampling=sampling,
    )
    room = _next_power_of_two(max_tokens)
    longest = max(map(len, texts))
    padded = min(context_length, max(_FEWEST_POSITIONS, _next_power_of_two(longest)))
    length_B = np.array([len(text) for text in texts], np.int32)
    written = _nothing_written(len(texts), room)
    has_cache = model.config.has_attention_maps
    if has_cache:
        rows = _rows(texts, padded)
        written = _within_context(model, params, rows, length_B, written, request)
    if int(written.num_tokens) < max_tokens and not np.all(written.ended_B):
        if has_cache:
            logging.warning(
                "the text is longer than the context of %d tokens: beyond it each token is drawn "
                "given only the last %d tokens, by a full forward pass",
                *(context_length, context_length),
            )
        texts = [
            np.concatenate([text, np.asarray(row)[: int(written.num_tokens)]])[-context_length:]
            for text, row in zip(texts, written.tokens_BN, strict=True)
        ]
        length_B = np.array([len(text) for text in texts], np.int32)
        written = _beyond_context(
            model, params, _rows(texts, context_length), length_B, written, request
        )
    if not written.is_finite:
        raise ValueError(
            "the model's logits are not finite: its training diverged, or the checkpoint belongs "
            "to another model; load an earlier step"
        )
    rows = np.asarray(written.tokens_BN)[:, : int(written.num_tokens)]
    return [_before(row, end_of_text_id) for row in rows]


class _Request(NamedTuple):
    """What to draw: a key for each text, how many tokens, and how.

    `end_of_text` is the token that ends a text, -1 for none.
    """

    keys_B: jax.Array
    max_tokens: jax.Array
    end_of_text: jax.Array
    sampling: Sampling


class _Written(NamedTuple):
    """The tokens drawn so far, `tokens_BN[:, :num_tokens]`, and which texts have ended."""

    tokens_BN: jax.Array
    num_tokens: jax.Array
    ended_B: jax.Array
    is_finite: jax.Array

    def add(self, logits_BV: jax.Array, request: _Request) -> tuple[jax.Array, _Written]:
        """Draws the next token of each sequence, and adds it."""
        keys_B = jax.vmap(jax.random.fold_in, in_axes=(0, None))(request.keys_B, self.num_tokens)
        draw = jax.vmap(functools.partial(sample, sampling=request.sampling))
        drawn_B = draw(logits_BV, keys_B)
        finite_B = jnp.all(jnp.isfinite(logits_BV), axis=-1)
        return drawn_B, _Written(
            self.tokens_BN.at[:, self.num_tokens].set(drawn_B),
            self.num_tokens + 1,
            self.ended_B | (drawn_B == request.end_of_text),
            self.is_finite & jnp.all(finite_B | self.ended_B),
        )

    def goes_on(self, request: _Request) -> jax.Array:
        """Whether there is more to draw."""
        return (self.num_tokens < request.max_tokens) & ~jnp.all(self.ended_B)


def _nothing_written(batch_size: int, room: int) -> _Written:
    return _Written(
        jnp.zeros((batch_size, room), jnp.int32),
        jnp.int32(0),
        jnp.zeros(batch_size, bool),
        jnp.array(True),
    )


@functools.partial(jax.jit, static_argnums=0)
def _within_context(
    model: Decoder,
    params: Params,
    tokens_BT: jax.Array,
    length_B: jax.Array,
    written: _Written,
    request: _Request,
) -> _Written:
    """Draws until all texts have ended, or the longest fills the context."""
    State = tuple[Variables, jax.Array, jax.Array, _Written]
    cache = empty_cache(model.config, len(tokens_BT), model.dtype)

    def read(
        cache: Variables, tokens_BT: jax.Array, last_B: jax.Array, written: _Written
    ) -> tuple[Variables, jax.Array, _Written]:
        variables = {"params": params, CACHE: cache}
        logits_BV, new = model.apply(
            variables, tokens_BT, last_B, method=_logits_at, mutable=[CACHE]
        )
        return new[CACHE], *written.add(logits_BV, request)

    def step(state: State) -> State:
        cache, drawn_B, length_B, written = state
        cache = move(cache, length_B)
        none_B = jnp.zeros_like(drawn_B)
        cache, drawn_B, new = read(cache, drawn_B[:, None], none_B, written)
        # A text that has ended does not grow.
        return cache, drawn_B, length_B + ~written.ended_B, new

    def goes_on(state: State) -> jax.Array:
        _, _, length_B, written = state
        fits = jnp.all((length_B < model.config.context_length) | written.ended_B)
        return written.goes_on(request) & fits

    cache, drawn_B, written = read(cache, tokens_BT, length_B - 1, written)
    return jax.lax.while_loop(goes_on, step, (cache, drawn_B, length_B, written))[-1]


@functools.partial(jax.jit, static_argnums=0)
def _beyond_context(
    model: Decoder,
    params: Params,
    window_BT: jax.Array,
    length_B: jax.Array,
    written: _Written,
    request: _Request,
) -> _Written:
    """Continues by whole forward passes over the last tokens of each text."""
    State = tuple[jax.Array, jax.Array, _Written]

    def step(state: State) -> State:
        window_BT, length_B, written = state
        variables = {"params": params}
        logits_BV = model.apply(variables, window_BT, length_B - 1, method=_logits_at)
        drawn_B, written = written.add(jnp.asarray(logits_BV), request)
        is_full_B = length_B == window_BT.shape[1]
        window_BT = jnp.where(is_full_B[:, None], jnp.roll(window_BT, -1, axis=1), window_BT)
        length_B = jnp.where(is_full_B, length_B, length_B + 1)
        put = jax.vmap(lambda row, place, token: row.at[place].set(token))
        return put(window_BT, length_B - 1, drawn_B), length_B, written

    def goes_on(state: State) -> jax.Array:
        return state[-1].goes_on(request)

    return jax.lax.while_loop(goes_on, step, (window_BT, length_B, written))[-1]


def _logits_at(model: Decoder, tokens_BT: jax.Array, place_B: jax.Array) -> jax.Array:
    """Logits [B, V] of one position of each sequence; the head is applied only there."""
    x_BTD = model.features(tokens_BT)
    return model.head(jnp.take_along_axis(x_BTD, place_B[:, None, None], axis=1)[:, 0])


def _check_prompt(prompt: np.ndarray, name: str, model: Decoder) -> None:
    context_length = model.config.context_length
    if prompt.ndim != 1:
        raise ValueError(
            f"{name} has the shape {list(prompt.shape)}; prompts are a list of texts, each the ids "
            "[T] of its tokens"
        )
    if not prompt.size:
        raise ValueError(f"{name} has no token; give at least one, such as a line break")
    if len(prompt) > context_length:
        raise ValueError(
            f"{name} has {len(prompt)} tokens, more than the model's context_length="
            f"{context_length}; give its last {context_length} tokens"
        )
    check_token_ids(prompt, model.vocab_size)


def _rows(texts: Sequence[np.ndarray], length: int) -> np.ndarray:
    """Texts as rows of one array, padded with zeros on the right."""
    return np.stack([np.pad(text, (0, length - len(text))) for text in texts]).astype(np.int32)


def _before(tokens: np.ndarray, end_of_text_id: int | None) -> np.ndarray:
    ends = np.flatnonzero(tokens == end_of_text_id)
    return tokens[: ends[0]] if len(ends) else tokens


def _following(
    decode: Callable[[Sequence[int] | np.ndarray], str], prompt: np.ndarray, written: np.ndarray
) -> str:
    """Text of the drawn tokens, decoded with the prompt, since decoding may depend on it."""
    before, whole = decode(prompt), decode([*prompt, *written])
    return whole[len(before) :] if whole.startswith(before) else decode(written)


def _next_power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()
