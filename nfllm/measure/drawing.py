"""Tokens drawn one after the other, as compiled loops: within a model's context, and beyond it.

Within the context length, keys and values of earlier tokens are cached (`nfllm.model.cache`).
Beyond it each token is drawn given the last `context_length` tokens, at positions from 0. Their
positions, and so their keys and values, change with every step, which is a full forward pass.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nfllm.measure.sampling import Sampling, sample
from nfllm.model.cache import CACHE, empty_cache, move
from nfllm.model.decoder import Decoder
from nfllm.model.parameters import Params, Variables


class Request(NamedTuple):
    """What to draw: a key for each text, how many tokens, and how.

    `end_of_text` is the token that ends a text, -1 for none.
    """

    keys_B: jax.Array
    max_tokens: jax.Array
    end_of_text: jax.Array
    sampling: Sampling


class Written(NamedTuple):
    """The tokens drawn so far, `tokens_BN[:, :num_tokens]`, and which texts have ended."""

    tokens_BN: jax.Array
    num_tokens: jax.Array
    ended_B: jax.Array
    is_finite: jax.Array

    def add(self, logits_BV: jax.Array, request: Request) -> tuple[jax.Array, Written]:
        """Draws the next token of each sequence, and adds it."""
        keys_B = jax.vmap(jax.random.fold_in, in_axes=(0, None))(request.keys_B, self.num_tokens)
        draw = jax.vmap(functools.partial(sample, sampling=request.sampling))
        drawn_B = draw(logits_BV, keys_B)
        finite_B = jnp.all(jnp.isfinite(logits_BV), axis=-1)
        return drawn_B, Written(
            self.tokens_BN.at[:, self.num_tokens].set(drawn_B),
            self.num_tokens + 1,
            self.ended_B | (drawn_B == request.end_of_text),
            self.is_finite & jnp.all(finite_B | self.ended_B),
        )

    def goes_on(self, request: Request) -> jax.Array:
        """Whether there is more to draw."""
        return (self.num_tokens < request.max_tokens) & ~jnp.all(self.ended_B)


def nothing_written(batch_size: int, room: int) -> Written:
    """The state before the first token, with room for this number of tokens."""
    return Written(
        jnp.zeros((batch_size, room), jnp.int32),
        jnp.int32(0),
        jnp.zeros(batch_size, bool),
        jnp.array(True),
    )


@functools.partial(jax.jit, static_argnums=0)
def within_context(
    model: Decoder,
    params: Params,
    tokens_BT: jax.Array,
    length_B: jax.Array,
    written: Written,
    request: Request,
) -> Written:
    """Draws until all texts have ended, or the longest fills the context."""
    State = tuple[Variables, jax.Array, jax.Array, Written]
    cache = empty_cache(model.config, len(tokens_BT), model.dtype)

    def read(
        cache: Variables, tokens_BT: jax.Array, last_B: jax.Array, written: Written
    ) -> tuple[Variables, jax.Array, Written]:
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
def beyond_context(
    model: Decoder,
    params: Params,
    window_BT: jax.Array,
    length_B: jax.Array,
    written: Written,
    request: Request,
) -> Written:
    """Continues by whole forward passes over the last tokens of each text."""
    State = tuple[jax.Array, jax.Array, Written]

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
