"""Text generation: tokens are drawn one after the other, each given all tokens before it.

A model without keys and values to cache (`model.mixer="regla"`) takes a full forward pass for each
token, as every model does beyond its context length (`nfllm.measure.drawing`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from numpy.typing import ArrayLike

from nfllm.analysis.arrays import as_integer
from nfllm.measure.drawing import Request, Written, beyond_context, nothing_written, within_context
from nfllm.measure.sampling import make_sampling
from nfllm.model.decoder import Decoder
from nfllm.model.parameters import Params
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
      ValueError: a prompt is no text, or has no token or more than the context holds; an option is
        outside its limits; or the model's logits are not finite.
      RunError: the run has no tokenizer; `generate_ids` takes token ids.

    Example:
      >>> import nfllm
      >>> run = nfllm.load_run("runs/default")
      >>> text = nfllm.generate(run, "def f(", max_tokens=20, temperature=0.8, top_k=40)
    """
    if isinstance(prompt, str):
        return generate(
            run, [prompt], max_tokens=max_tokens, temperature=temperature, top_k=top_k,
            top_p=top_p, seed=seed,
        )[0]  # fmt: skip
    for text in prompt:
        if not isinstance(text, str):
            raise ValueError(
                f"a prompt is a text, not a {type(text).__name__}; "
                "nfllm.measure.generation.generate_ids takes token ids"
            )
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
    if not 1 <= as_integer("max_tokens", max_tokens) < 2**31:
        raise ValueError(f"max_tokens={max_tokens} is outside 1 to 2**31 - 1")
    if not 0 <= as_integer("seed", seed) < 2**32:
        raise ValueError(f"seed={seed} is outside 0 to 2**32 - 1")
    sampling = make_sampling(temperature, top_k, top_p)
    texts = [np.asarray(prompt) for prompt in prompts]
    for number, text in enumerate(texts):
        _check_prompt(text, f"prompt {number}" if len(texts) > 1 else "the prompt", model)
    if not texts:
        return []
    request = Request(
        keys_B=jax.random.split(jax.random.key(seed), len(texts)),
        max_tokens=jnp.int32(max_tokens),
        end_of_text=jnp.int32(-1 if end_of_text_id is None else end_of_text_id),
        sampling=sampling,
    )
    written = _write(model, params, texts, request, max_tokens)
    if not written.is_finite:
        raise ValueError(
            "the model's logits are not finite: its training diverged, or the checkpoint belongs "
            "to another model; load an earlier step"
        )
    rows = np.asarray(written.tokens_BN)[:, : int(written.num_tokens)]
    return [_before(row, end_of_text_id) for row in rows]


def _write(
    model: Decoder, params: Params, texts: Sequence[np.ndarray], request: Request, max_tokens: int
) -> Written:
    """Draws what is requested, first within the context and then beyond it."""
    context_length = model.config.context_length
    written = nothing_written(len(texts), _next_power_of_two(max_tokens))
    has_cache = model.config.has_attention_maps
    if has_cache:
        longest = _next_power_of_two(max(map(len, texts)))
        rows = _rows(texts, min(context_length, max(_FEWEST_POSITIONS, longest)))
        written = within_context(model, params, rows, _lengths(texts), written, request)
        num_tokens = int(written.num_tokens)
        if num_tokens == max_tokens or np.all(written.ended_B):
            return written
        logging.warning(
            "the text is longer than the context of %d tokens: beyond it each token is drawn given "
            "only the last %d tokens, by a full forward pass",
            context_length,
            context_length,
        )
        texts = [
            np.concatenate([text, np.asarray(row)[:num_tokens]])[-context_length:]
            for text, row in zip(texts, written.tokens_BN, strict=True)
        ]
    rows = _rows(texts, context_length)
    return beyond_context(model, params, rows, _lengths(texts), written, request)


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


def _lengths(texts: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([len(text) for text in texts], np.int32)


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
