"""Generated text: equal to whole forward passes token by token, to transformers, and refused."""

from __future__ import annotations

import functools
import itertools
import runpy
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from random_model import random_model

import nfllm
from nfllm.convert import convert, load_checkpoint
from nfllm.data.tokenizer import bytes_tokenizer
from nfllm.measure import drawing
from nfllm.measure.generation import generate_ids
from nfllm.measure.sampling import make_sampling, sample
from nfllm.model.cache import empty_cache
from nfllm.model.decoder import Decoder

RECORDINGS = Path(__file__).parent / "recordings"
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10], [11]]


class WeighedSums:
    """The next token: the sum of all seen, each times its position from 1, modulo 7."""

    def apply(self, variables: Any, window_BT: jax.Array, place_B: jax.Array, method: Any) -> Any:
        position_T = jnp.arange(window_BT.shape[1])
        seen_BT = jnp.where(position_T[None] <= place_B[:, None], window_BT, 0)
        return 100 * jax.nn.one_hot(jnp.sum(seen_BT * (position_T + 1)[None], axis=1) % 7, 7)


def test_beyond_the_context_the_oldest_token_goes() -> None:
    """A context of 4, which one text fills and the other comes to fill."""
    texts = [[3, 1, 4, 1], [2, 6]]
    window_BT = np.array([[3, 1, 4, 1], [2, 6, 0, 0]], np.int32)
    request = drawing.Request(
        keys_B=jax.random.split(jax.random.key(0), 2),
        max_tokens=jnp.int32(8),
        end_of_text=jnp.int32(-1),
        sampling=make_sampling(0, None, None),
    )
    written = drawing.beyond_context(
        WeighedSums(), {}, window_BT, np.array([4, 2]), drawing.nothing_written(2, 8), request
    )
    for text, found in zip(texts, written.tokens_BN, strict=True):
        for _ in range(8):
            text.append(sum((s + 1) * token for s, token in enumerate(text[-4:])) % 7)
        assert found.tolist() == text[-8:]


@functools.partial(jax.jit, static_argnums=0)
def logits(model: Decoder, params: Any, tokens: np.ndarray) -> jax.Array:
    return model.apply({"params": params}, tokens)


def by_whole_passes(
    model: Decoder, params: Any, num_tokens: int, temperature: float
) -> list[list[int]]:
    """What follows each of `PROMPTS`, each token given the last `context_length` before it."""
    context_length = model.config.context_length
    draw = jax.jit(functools.partial(sample, sampling=make_sampling(temperature, None, None)))
    texts = [list(prompt) for prompt in PROMPTS]
    keys = jax.random.split(jax.random.key(0), len(PROMPTS))
    for number in range(num_tokens):
        rows = np.zeros((len(PROMPTS), context_length), np.int32)
        for row, text in zip(rows, texts, strict=True):
            row[: len(text)] = text[-context_length:]
        scores = logits(model, params, rows)
        for score, text, key in zip(scores, texts, keys, strict=True):
            place = min(len(text), context_length) - 1
            text.append(int(draw(score[place], jax.random.fold_in(key, number))))
    return [text[len(prompt) :] for text, prompt in zip(texts, PROMPTS, strict=True)]


MODELS = [
    {"architecture": "gpt2", "attention_bias": "all", "mlp_bias": True, "scan_layers": True},
    {"architecture": "gpt_neox", "attention_bias": "all", "scan_layers": False},
    {"architecture": "gpt2", "normalization": "layernorm", "scan_layers": False},
    {"architecture": "gpt2", "attention_bias": "qk", "qk_normalization": "rmsnorm"},
    {"architecture": "gpt_neox", "normalization": "rmsnorm", "qk_normalization": "layernorm"},
    {"architecture": "gpt_neox", "normalization": "dyt", "rotary_fraction": 1.0},
    {"architecture": "gpt_neox", "normalization": "derf", "scan_layers": True, "remat": True},
    {"attention_shaping": "shaped", "value_projection": "none", "output_projection": "none"},
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "temperature"),
    [*((options, 1.0) for options in MODELS), *((options, 0.0) for options in MODELS[:2])],
    ids=str,
)
def test_text_is_that_of_whole_passes(options: dict[str, Any], temperature: float) -> None:
    """Within the context of 12 tokens, and beyond it."""
    model, params = random_model(0.4, **options)
    written = generate_ids(model, params, PROMPTS, max_tokens=15, temperature=temperature)
    written = [tokens.tolist() for tokens in written]
    assert written == by_whole_passes(model, params, 15, temperature)
    # Only draws tell much of a model with random parameters: it likes to repeat itself.
    assert temperature == 0 or len({*itertools.chain(*written)}) > 8


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        "gpt2",
        "gpt2_untied_relu",
        "gpt_neox",
        "gpt_neox_tied_unbiased",
        "llama_grouped_biased",
        "llama_tied_relu",
    ],
)
def test_greedy_text_is_that_of_transformers(case: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(RECORDINGS / case).eval()
    checkpoint = load_checkpoint(RECORDINGS / case)
    model = Decoder(checkpoint.config, checkpoint.vocab_size)
    num_tokens = checkpoint.config.context_length - 2
    for prompt in ([3, 1], [5, 0]):
        expected = theirs.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, 2), max_new_tokens=num_tokens,
            do_sample=False, eos_token_id=None, pad_token_id=0,
        )[0, 2:]  # fmt: skip
        found = generate_ids(
            model, checkpoint.params, [prompt], max_tokens=num_tokens, temperature=0
        )
        np.testing.assert_array_equal(found[0], expected.numpy())


@pytest.mark.slow
def test_draws_depend_on_the_seed_and_the_place_alone() -> None:
    model, params = random_model(0.3, tie_embeddings=False)
    draw = functools.partial(generate_ids, model, params, max_tokens=8)
    twice = draw([*PROMPTS[:1], *PROMPTS[:1]], seed=1)
    np.testing.assert_array_equal(twice[0], draw(PROMPTS, seed=1)[0])
    assert twice[0].tolist() != twice[1].tolist()
    assert twice[0].tolist() != draw(PROMPTS, seed=2)[0].tolist()


@pytest.mark.slow
def test_each_shape_is_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The function that makes a cache is called where the loop over tokens is traced, and once."""
    # A length that no other test has, so that nothing of it is traced already.
    model, params = random_model(0.2, context_length=61)
    traced = mock.Mock(wraps=empty_cache)
    monkeypatch.setattr("nfllm.measure.drawing.empty_cache", traced)
    for prompt, max_tokens, seed, top_k in [([1, 2], 20, 0, 3), ([3] * 9, 31, 1, 5)]:
        generate_ids(model, params, [prompt], max_tokens=max_tokens, seed=seed, top_k=top_k)
    assert traced.call_count == 1


@pytest.mark.slow
def test_a_text_ends_at_its_end() -> None:
    model, params = random_model(0.5, final_normalization="none")
    whole = generate_ids(model, params, PROMPTS, max_tokens=15, temperature=0)
    end = int(whole[0][4])
    for found, expected in zip(
        generate_ids(model, params, PROMPTS, max_tokens=15, temperature=0, end_of_text_id=end),
        whole,
        strict=True,
    ):
        expected = expected.tolist()
        stop = expected.index(end) if end in expected else 15
        assert found.tolist() == expected[:stop]


@pytest.mark.slow
def test_a_text_beyond_the_context_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model, params = random_model(0.3)
    logging.get_absl_logger().propagate = True
    generate_ids(model, params, [[1, 2, 3]], max_tokens=9 + 1)
    assert not caplog.messages
    generate_ids(model, params, [[1, 2, 3]], max_tokens=9 + 2)
    assert "longer than the context of 12 tokens" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[]], {}, "the prompt has no token"),
        ([[1], [2] * 13], {}, "prompt 1 has 13 tokens, more than .* context_length=12; give its"),
        ([[50]], {}, "token id 50 .* outside the model's table of 50"),
        ([[1]], {"max_tokens": 0}, "max_tokens=0 is outside 1 to"),
        ([[1]], {"max_tokens": 2**31}, "max_tokens=2147483648 is outside 1 to"),
        ([[1]], {"max_tokens": 1, "seed": 2**32}, "seed=4294967296 is outside 0 to"),
        ([[1]], {"max_tokens": 1, "seed": -1}, "seed=-1 is outside 0 to"),
        ([1, 2], {"max_tokens": 1}, r"prompt 0 has the shape \[\]; prompts are a list of texts"),
        ([[1]], {"temperature": -1.0}, r"temperature=-1.0 must be a finite number, at least 0"),
        ([[1]], {"temperature": float("nan")}, "temperature=nan must be a finite number"),
        ([[1]], {"top_k": 0}, "top_k=0 must be at least 1"),
        ([[1]], {"top_k": 2.5}, r"top_k=2.5 must be a whole number"),
        ([[1]], {"max_tokens": 2.5}, r"max_tokens=2.5 must be a whole number"),
        ([[1]], {"seed": 1.5}, r"seed=1.5 must be a whole number"),
        ([[1]], {"top_p": 0.0}, r"top_p=0.0 is outside \(0, 1\]"),
        ([[1]], {"top_p": 1.5}, r"top_p=1.5 is outside \(0, 1\]"),
    ],
)
def test_bad_input(prompts: list, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate_ids(*random_model(0.2), prompts, **options)


@pytest.mark.slow
def test_double_precision_of_the_caller_does_not_matter() -> None:
    expected = generate_ids(*random_model(0.2), [[1, 2], [3]], max_tokens=14)
    with jax.enable_x64(True):
        found = generate_ids(*random_model(0.2), [[1, 2], [3]], max_tokens=14)
    assert list(map(len, found)) == list(map(len, expected))


@pytest.mark.slow
def test_logits_that_are_not_finite_are_an_error() -> None:
    model, params = random_model(0.2)
    params["blocks"]["mlp"]["in_kernel"] *= np.nan
    with pytest.raises(ValueError, match="logits are not finite"):
        generate_ids(model, params, [[1]], max_tokens=2)


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded GPT-2, which writes bytes."""
    folder = tmp_path_factory.mktemp("imported")
    convert(RECORDINGS / "gpt2", folder / "run")
    bytes_tokenizer().save(folder / "run" / "tokenizer.json")
    return folder / "run"


@pytest.mark.slow
def test_text_of_a_run(run_directory: Path) -> None:
    run = nfllm.load_run(run_directory)
    # The recorded model has 43 tokens, the bytes up to "*".
    ids = generate_ids(run.model, run.params, [[33, 35]], max_tokens=6, temperature=0)[0]
    text = nfllm.generate(run, "!#", max_tokens=6, temperature=0)
    assert text.encode() == bytes(ids.tolist())
    texts = nfllm.generate(run, ["!#", "%"], max_tokens=6, temperature=0)
    assert texts[0] == text
    assert len(texts) == 2
    with pytest.raises(ValueError, match="the prompt has no token"):
        nfllm.generate(run, "")
    with pytest.raises(ValueError, match="a prompt is a text, not a ndarray; nfllm"):
        nfllm.generate(run, [np.array([33, 35])])


def command(*arguments: object) -> int:
    sys.argv = ["generate", *map(str, arguments)]
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("nfllm.generate", run_name="__main__")
    return ended.value.code


@pytest.mark.slow
def test_command(
    run_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", [])
    run = nfllm.load_run(run_directory)
    options = ["--tokens", 6, "--temperature", 0.8, "--top_k", 9, "--top_p", 0.9, "--seed", 3]
    assert command(run_directory, "!#", *options, "--step", 0) == 0
    text = nfllm.generate(run, "!#", max_tokens=6, temperature=0.8, top_k=9, top_p=0.9, seed=3)
    assert capsys.readouterr().out == f"!#{text}\n"
    assert command(run_directory, "!#", "--top_p", 2) == 2
    assert capsys.readouterr().err.startswith("error: top_p=2.0 is outside (0, 1]")
    assert command(run_directory, "!#", "--step", 7) == 2
    assert "no checkpoint of step 7; it holds 0 (" in capsys.readouterr().err


@pytest.mark.slow
def test_the_function_stays_where_the_module_is_imported() -> None:
    import nfllm.generate
    from nfllm.measure.generation import generate

    assert nfllm.generate is generate
