"""Whether the device computes the same numbers as a CPU: each error beside its tolerance."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from programs import SMALL, make_config

from nfllm import analysis
from nfllm.config import Config
from nfllm.data.batches import Batch
from nfllm.model.attention import Attention
from nfllm.model.capture import capture
from nfllm.model.decoder import Decoder
from nfllm.model.head import unembed
from nfllm.model.intermediates import BY_PRODUCTS, ENTROPY
from nfllm.trainer.placement import Placement
from nfllm.training.build import build
from nfllm.training.loss_tiles import next_token_loss_from_features
from parts.attention import IMPLEMENTATIONS, attention_module, can_run
from parts.rows import Row, Rows

TESTS = Path(__file__).parents[2] / "tests"

# The tests' tolerances are those of a CPU; other devices sum in another order.
RECORDING_LIMIT = 4.0
FAST_PATH_LIMIT = 1e-2
ATTENTION_LIMIT = 1e-2
ENTROPY_LIMIT = 1e-5


def run(rows: Rows, rehearse: bool) -> None:
    jax.config.update("jax_default_matmul_precision", "highest")  # of float32 products
    _recordings(rows, rehearse)
    _fast_paths(rows, rehearse)
    _attention(rows, rehearse)
    rows.add("logits, more than 2^31 at once", lambda: _many_logits(rehearse))
    rows.add("entropy", lambda: _entropy(rehearse))
    rows.add("resume", lambda: _resume(rehearse))


def _recordings(rows: Rows, rehearse: bool) -> None:
    """The tests against recordings of the authors' code: errors become rows, and nothing fails."""
    sys.path[:0] = [str(TESTS), str(TESTS.parent)]
    import parity_recordings
    import test_parity

    files = [
        *((test_parity.test_forward, path) for path in parity_recordings.forward_files(_CASES)),
        *(
            (test_parity.test_trajectory, path)
            for path in parity_recordings.trajectory_files(_CASES)
        ),
    ]
    files = [(test, path) for test, path in files if not rows.has(path.stem)]
    if rehearse:
        files = files[:1] + files[-1:]

    with _recorded_comparisons(), ThreadPoolExecutor(8) as pool:
        found = [(path.stem, pool.submit(_errors_of, test, path)) for test, path in files]
        for name, future in found:
            rows.add(name, future.result)


_CASES = TESTS / "parity" / "cases"
_COMPARED = threading.local()


def _errors_of(test: Callable[[Path], None], path: Path) -> Row:
    _COMPARED.found = []
    test(path)
    share, name = max(_COMPARED.found)
    return {
        "compared": len(_COMPARED.found),
        "largest_share_of_tolerance": share,
        "limit": RECORDING_LIMIT,
        "in": name,
        "ok": share <= RECORDING_LIMIT,
    }


@contextlib.contextmanager
def _recorded_comparisons() -> Iterator[None]:
    """A context in which `assert_allclose` stores errors as shares of tolerances, and passes."""

    def note(
        actual: Any, desired: Any, rtol: float = 1e-7, atol: float = 0.0, **options: Any
    ) -> None:
        actual, desired = np.asarray(actual, np.float64), np.asarray(desired, np.float64)
        allowed = atol + rtol * np.abs(desired)
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = np.where(actual == desired, 0.0, np.abs(actual - desired) / allowed)
        share = float(np.max(shares, initial=0.0))
        _COMPARED.found.append((np.inf if np.isnan(share) else share, options.get("err_msg", "")))

    with mock.patch.object(np.testing, "assert_allclose", note):
        yield


FAST_PATHS: dict[str, dict[str, dict[str, Any]]] = {
    **{name: {"model": {"attention_implementation": name}} for name in IMPLEMENTATIONS},
    "tiles": {"training": {"loss_tile_rows": 256}},
    "scanned and recomputed": {"model": {"scan_layers": True, "remat": True}},
    "entropy in every step": {"telemetry": {"entropy_every_step": True}},
    "fsdp": {"parallel": {"strategy": "fsdp"}},
}


def _fast_paths(rows: Rows, rehearse: bool) -> None:
    """Fifty steps in bfloat16 by every fast path, and in float32 by the plain one."""
    steps = 5 if rehearse else 50
    paths = {name: path for name, path in FAST_PATHS.items() if can_run(name)}
    if rehearse:
        paths = dict(list(paths.items())[:2])
    names = [name for name in paths if not rows.has(f"fifty steps, {name}")]
    if not names:
        return
    plain = {"model": {"attention_implementation": "explicit"}, "training": {"dtype": "float32"}}
    jobs = [plain, *(_with_dtype(paths[name], "bfloat16") for name in names)]
    with ThreadPoolExecutor(8) as pool:
        expected, *found = (pool.submit(_train, _config(sections), steps) for sections in jobs)
        for name, future in zip(names, found, strict=True):
            rows.add(
                f"fifty steps, {name}",
                lambda f=future: _loss_error(f.result(), expected.result()),
            )


def _with_dtype(sections: dict[str, dict[str, Any]], dtype: str) -> dict[str, dict[str, Any]]:
    return {**sections, "training": {**sections.get("training", {}), "dtype": dtype}}


def _loss_error(losses: np.ndarray, expected: np.ndarray) -> Row:
    error = float(np.max(np.abs(losses / expected - 1)))
    return {
        "first_loss": float(losses[0]),
        "last_loss": float(losses[-1]),
        "relative_error": error,
        "limit": FAST_PATH_LIMIT,
        "ok": error <= FAST_PATH_LIMIT,
    }


_TINY = SMALL._replace(layers=2, heads=4, width=64, vocab_size=512, sequences=8)


def _config(sections: dict[str, dict[str, Any]]) -> Config:
    model = {"normalization": "layernorm", "activation": "gelu", **sections.get("model", {})}
    training = {"steps": 50, "gradient_accumulation": 1, **sections.get("training", {})}
    return make_config(_TINY, **{**sections, "model": model, "training": training})


def _train(config: Config, steps: int) -> np.ndarray:
    with jax.default_matmul_precision(_precision(config.training.dtype)):
        built, placement = build(config, _TINY.vocab_size), Placement(config)
        train_step = placement.train_step(built.train_step)
        state = placement.init(built.init, jax.random.key(0))
        losses = []
        for number in range(steps):
            tokens = np.random.RandomState(number % 2).randint(0, 512, (8, 128)).astype(np.int32)
            state, metrics = train_step(state, placement.put_train(Batch(tokens, tokens)))
            losses.append(float(metrics.loss_nats))
        return np.asarray(losses)


def _precision(dtype: str) -> str:
    return "highest" if dtype == "float32" else "default"


def _attention(rows: Rows, rehearse: bool) -> None:
    """Output and gradients in bfloat16 by every implementation, against float32.

    Once with a few long sequences, once with as many short ones as a step of GPT-2 124M has.
    """
    shapes = {"": (2, 64, 4, 64), ", short": (16, 16, 2, 64)}
    if not rehearse:
        shapes = {"": (2, 1024, 4, 64), ", short": (512, 128, 12, 64)}
    for suffix, shape in shapes.items():
        names = [name for name in IMPLEMENTATIONS if can_run(name)]
        if all(rows.has(f"attention {name}{suffix}") for name in names):
            continue
        operands = jax.random.normal(jax.random.key(0), (4, *shape)).astype(jnp.bfloat16)
        exact = _mixed_and_gradients("explicit", "float32", operands.astype(jnp.float32))
        for name in names:
            rows.add(
                f"attention {name}{suffix}",
                lambda n=name, o=operands, e=exact: _distances(
                    _mixed_and_gradients(n, "bfloat16", o), e
                ),
            )


def _many_logits(rehearse: bool) -> Row:
    """Loss and gradients in bfloat16 of more than 2^31 logits at once, against tiles of them."""
    batch, length, width, vocab_size = (16, 16, 64, 512) if rehearse else (512, 128, 768, 50304)
    keys = jax.random.split(jax.random.key(0), 3)
    x_BTD = jax.random.normal(keys[0], (batch, length, width), jnp.bfloat16)
    table_VD = 0.02 * jax.random.normal(keys[1], (vocab_size, width), jnp.bfloat16)
    labels_BT = jax.random.randint(keys[2], (batch, length), 0, vocab_size)

    def loss(x_BTD: jax.Array, table_VD: jax.Array, tile_rows: int) -> jax.Array:
        def head(x: jax.Array) -> jax.Array:
            return unembed(x, table_VD)

        return next_token_loss_from_features(head, x_BTD, labels_BT, tile_rows) / labels_BT.size

    run = jax.jit(jax.value_and_grad(loss, (0, 1)), static_argnums=2)
    whole, tiles = (
        [np.asarray(x.astype(jnp.float32)) for x in jax.tree.leaves(run(x_BTD, table_VD, rows))]
        for rows in (labels_BT.size, labels_BT.size // 16)
    )
    return _distances(whole, tiles, ("loss", "d_features", "d_table"))


def _mixed_and_gradients(name: str, dtype: str, operands: jax.Array) -> list[np.ndarray]:
    batch, length, heads, head_dim = operands.shape[1:]
    module = attention_module(name, (batch, length, heads, head_dim), jnp.dtype(dtype))

    @jax.jit
    def run(q: jax.Array, k: jax.Array, v: jax.Array, cotangent: jax.Array) -> Any:
        def mix(q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
            return module.apply({}, q, k, v, method=Attention.mix)

        mixed, backward = jax.vjp(mix, q, k, v)
        return mixed, *backward(cotangent)

    with jax.default_matmul_precision(_precision(dtype)):
        return [np.asarray(x.astype(jnp.float32), np.float64) for x in run(*operands)]


def _distances(
    found: list[np.ndarray],
    exact: list[np.ndarray],
    names: tuple[str, ...] = ("forward", "d_query", "d_key", "d_value"),
) -> Row:
    errors = {
        name: float(np.linalg.norm(x - y) / np.linalg.norm(y))
        for name, x, y in zip(names, found, exact, strict=True)
    }
    return {**errors, "limit": ATTENTION_LIMIT, "ok": max(errors.values()) <= ATTENTION_LIMIT}


def _entropy(rehearse: bool) -> Row:
    """Errors in nats of three computations of every head's entropy, against float64."""
    config = _config({"model": {"context_length": 32 if rehearse else 512}, "training": {}})
    model = Decoder(config.model, _TINY.vocab_size)
    tokens_BT = np.random.RandomState(0).randint(0, 512, (4, config.model.context_length))
    params = model.init(jax.random.key(0), tokens_BT)["params"]
    # Larger weights make attention sharper.
    params = jax.tree.map(lambda leaf: 6 * leaf if leaf.ndim > 2 else leaf, params)
    found = capture(model, params, tokens_BT)
    q, k = (np.moveaxis(np.asarray(x, np.float64), -2, -3) for x in (found.query, found.key))
    scores = q @ np.swapaxes(k, -1, -2) / np.sqrt(q.shape[-1])
    exact = _entropy64(scores)
    _, state = model.apply({"params": params}, tokens_BT, mutable=[BY_PRODUCTS])
    by_product_LH = state[BY_PRODUCTS]["blocks"]["attention"][ENTROPY]
    logits = analysis.attention_entropy_from_logits(found.attention_logits, causal=True)
    heads_first = (jnp.moveaxis(x, -2, -3) for x in (found.query, found.key))
    from_qk = analysis.attention_entropy_from_qk(*heads_first)
    errors = {
        "by_product": float(np.abs(by_product_LH - exact.mean((1, 3))).max()),
        "from_logits": float(np.abs(logits - exact).max()),
        "from_qk": float(np.abs(from_qk - exact).max()),
    }
    return {
        **errors,
        "smallest": float(exact.mean((1, 3)).min()),
        "limit": ENTROPY_LIMIT,
        "ok": max(errors.values()) <= ENTROPY_LIMIT,
    }


def _entropy64(scores: np.ndarray) -> np.ndarray:
    visible = np.tril(np.ones(scores.shape[-2:], bool))
    scores = np.where(visible, scores, -np.inf)
    scores = scores - scores.max(-1, keepdims=True)
    weights = np.exp(scores)
    total = weights.sum(-1, keepdims=True)
    return np.log(total)[..., 0] - (weights * np.where(visible, scores, 0)).sum(-1) / total[..., 0]


def _resume(rehearse: bool) -> Row:
    """Differences in parameters between two runs of 2N steps, and a run resumed after N steps."""
    from nfllm.run import load_run
    from nfllm.trainer.loop import fit

    half = 4 if rehearse else 40
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder, "stories.txt")
        for number in range(200):
            text = " ".join(str(n * number % 97) for n in range(60))
            corpus.with_name(f"story{number}.txt").write_text(f"{number} {text}\n")
        config = make_config(
            _TINY._replace(context_length=32),
            data={
                "dataset": "text_files",
                "sources": f"{folder}/story*.txt",
                "data_dir": f"{folder}/data",
                "tokenizer": "bytes",
                "vocab_size": 257,
            },
            training={"steps": 2 * half, "log_every": 1, "compilation_cache": f"{folder}/compiled"},
            evaluation={"batch_size": 8, "every": 0},
            checkpoint={"every": half, "keep": 2},
            telemetry={"every": 0},
        )
        runs = [Path(folder, name) for name in ("whole", "again", "resumed")]
        for path in runs[:2]:
            fit(config, path)
        shutil.copytree(runs[0], runs[2])
        (last,) = (runs[2] / "checkpoints").glob(f"*_{2 * half}")
        shutil.rmtree(last)
        fit(config, runs[2])
        whole, again, resumed = (load_run(path) for path in runs)
        return {
            "steps": f"{half} + {half}",
            "resumed": _difference(whole, resumed),
            "same_command_again": _difference(whole, again),
            "ok": _difference(whole, resumed) <= 10 * max(_difference(whole, again), 1e-7),
        }


def _difference(one: Any, other: Any) -> float:
    """Largest difference of a parameter, relative to the largest value in its array."""
    leaves = zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True)
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in leaves)
