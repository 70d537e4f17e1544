"""The training step, whole and with parts left out, as jobs for timing."""

import contextlib
import functools
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # configs/ is not part of the installed package

from nfllm.config import Config, get_config  # noqa: E402
from nfllm.data.batches import Batch  # noqa: E402
from nfllm.model import head  # noqa: E402
from nfllm.model.attention import Attention  # noqa: E402
from nfllm.model.attention_implementation import (  # noqa: E402
    choose_implementation,
    queries_per_block,
)
from nfllm.trainer.batch_division import configure_devices  # noqa: E402
from nfllm.trainer.placement import Placement  # noqa: E402
from nfllm.training import build as build_module  # noqa: E402
from nfllm.training import objective  # noqa: E402
from nfllm.training.build import build, dtype_of  # noqa: E402
from nfllm.training.step import StepMetrics  # noqa: E402
from nfllm.training.telemetry import make_probe  # noqa: E402

Job = Callable[[], object]
Tracing = Callable[[], contextlib.AbstractContextManager[None]]

# An ablation patches the model while it is traced: one trace at a time.
_TRACING = threading.Lock()


class Workload(NamedTuple):
    """The shape of model and batch, and the size of the matrix product that measures the peak."""

    layers: int
    heads: int
    width: int
    context_length: int
    vocab_size: int
    sequences: int
    peak_size: int

    @property
    def model(self) -> dict[str, int]:
        """The keys of the section `model`."""
        return {
            "num_layers": self.layers,
            "num_heads": self.heads,
            "embed_dim": self.width,
            "context_length": self.context_length,
        }

    def __str__(self) -> str:
        return (
            f"{self.layers} layers, {self.heads} heads, width {self.width}, vocabulary "
            f"{self.vocab_size}, T {self.context_length}, batch {self.sequences}"
        )


SMALL = Workload(4, 4, 256, 128, 4096, sequences=32, peak_size=2048)
GPT2_124M = Workload(12, 12, 768, 128, 50304, sequences=512, peak_size=8192)
WORKLOADS = {
    "small": SMALL,
    "small_1024": SMALL._replace(context_length=1024, sequences=4),
    "gpt2": GPT2_124M,
    "gpt2_1024": GPT2_124M._replace(context_length=1024, sequences=64),
}


def use_workload(name: str | None) -> Workload:
    """The workload of this name, or the machine's default; also configures the devices for it."""
    # Before JAX starts: afterwards a CPU cannot be split into devices.
    configure_devices(make_config(WORKLOADS[name or "small"]))
    return WORKLOADS[name or ("small" if jax.default_backend() == "cpu" else "gpt2")]


VARIANTS = {
    "norm-free ReLU": {"normalization": "none", "activation": "relu"},
    "LayerNorm GELU": {"normalization": "layernorm", "activation": "gelu"},
}
ABLATIONS = ("no head", "no attention", "no optimizer", "forward only")
LOGITS_16 = "logits in 16 bits"  # rounded to the type of the products before the loss reads them


def step_flops(model: Any, vocab_size: int, sequences: int) -> float:
    """Floating-point operations of one training step.

    Per token, 6 for each weight of a matrix product, the tied head included, and 6 L D T for causal
    attention: two products of T²/2 x D multiply-adds, forward and twice backward.
    """
    layer = 4 * model.embed_dim**2 + 2 * model.embed_dim * model.mlp_width
    weights = model.num_layers * layer + vocab_size * model.embed_dim
    attention = model.num_layers * model.embed_dim * model.context_length
    return 6 * (weights + attention) * sequences * model.context_length


def make_config(workload: Workload, **sections: dict[str, Any]) -> Config:
    """The default config at the workload's shape, with changed keys by section."""
    values = get_config().to_dict()
    values["model"] |= workload.model
    values["training"]["batch_size"] = workload.sequences
    for section, keys in sections.items():
        values[section] |= keys
    return Config.from_dict(values)


class Trainer:
    """A model in training, on random tokens that stay on the device.

    A new trainer has neither program nor state: `compile` makes the program, the first `step` the
    state.

    Attributes:
      config: of the trained model.
      flops: FLOPs of a step, by `step_flops`.
      compile_seconds: duration of tracing and compiling; None before.
      finite: whether every step so far had a finite loss and gradient.
    """

    def __init__(self, config: Config, workload: Workload, ablation: str = "") -> None:
        """`ablation` is one of `ABLATIONS`, `LOGITS_16`, or empty for the whole step."""
        self.config = config
        self.flops = step_flops(config.model, workload.vocab_size, workload.sequences)
        self.compile_seconds: float | None = None
        self.finite = True
        self._placement = Placement(config)
        with _ablated(ablation):
            built = build(config, workload.vocab_size)
        self._init = built.init
        step = _forward(built.eval_step) if ablation == "forward only" else built.train_step
        self._step = self._placement.train_step(step)
        self._ablation = ablation
        self._probe = make_probe(built.model)
        shape = (workload.sequences, config.model.context_length)
        tokens = np.random.RandomState(0).randint(0, workload.vocab_size, shape).astype(np.int32)
        self._host_batch = Batch(tokens, tokens)
        self._program: Any = None
        self._state: Any = None

    def compile(self, while_tracing: Tracing = contextlib.nullcontext) -> None:
        """Compiles the step's program; several trainers may compile in threads at the same time.

        `while_tracing` returns the context in which the step is traced.
        """
        begin = time.perf_counter()
        with _TRACING, while_tracing(), _ablated(self._ablation):
            state = jax.eval_shape(self._init, jax.random.key(0))
            lowered = self._step.lower(state, self._batch)
        self._program = lowered.compile()
        self.compile_seconds = time.perf_counter() - begin

    @functools.cached_property
    def _compiled(self) -> jax.stages.Compiled:
        if self._program is None:
            self.compile()
        return self._program

    @functools.cached_property
    def _batch(self) -> Batch:
        return self._placement.put_train(self._host_batch)

    def step(self) -> None:
        """One training step; returns when its work is done."""
        if self._state is None:
            self._state = self._placement.init(self._init, jax.random.key(0))
        self._state, metrics = self._compiled(self._state, self._batch)
        jax.block_until_ready((self._state, metrics))
        if isinstance(metrics, StepMetrics):  # an ablation may return something else
            self.finite &= bool(metrics.finite)

    def free(self) -> None:
        """Frees the state and the batch."""
        self._state = None
        self.__dict__.pop("_batch", None)

    def peak_bytes(self) -> int:
        """Device memory that the program needs at most, in bytes, by the compiler's estimate."""
        memory = self._compiled.memory_analysis()
        return (
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            + memory.temp_size_in_bytes
            - memory.alias_size_in_bytes
        )

    def probe(self) -> None:
        """One telemetry probe of `telemetry.probe_windows` sequences."""
        if self._state is None:
            self.step()
        windows = self.config.telemetry.probe_windows
        tokens = self._placement.put_probe(self._host_batch.tokens[:windows])
        self._probe(self._state.params, tokens)


def _forward(eval_step: Callable[..., Any]) -> Callable[..., Any]:
    """A step that only computes the loss, micro-batch by micro-batch as the training step does."""

    def step(state: Any, batch: Batch, *, axis_name: str | None = None) -> Any:
        losses = jax.lax.map(
            lambda batch: eval_step(state.params, batch, axis_name=axis_name).loss_nats, batch
        )
        return state, losses.sum()

    return step


def _ablated(ablation: str) -> Any:
    """A context in which the part that an ablation leaves out is replaced."""
    if ablation == "no head":

        def loss(_head: object, x_BTD: jax.Array, *_: object) -> jax.Array:
            return jnp.sum(x_BTD, dtype=jnp.float32)

        return mock.patch.object(objective, "next_token_loss_from_features", loss)
    if ablation == "no attention":
        # The four matrices stay; only the mixing between them is left out.
        return mock.patch.object(Attention, "mix", lambda self, q, k, v, *_: v)
    if ablation == "no optimizer":
        return mock.patch.object(build_module, "make_optimizer", return_value=optax.set_to_zero())
    if ablation == LOGITS_16:

        def product(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
            return jnp.einsum(subscripts, a, b).astype(jnp.float32)

        return mock.patch.object(head, "einsum_to_float32", product)
    return mock.patch.dict({})


def other_attention(config: Config) -> list[str]:
    """The implementations of attention that run here, except the one that `auto` chooses."""
    names = ["xla"] + ["cudnn"] * (jax.default_backend() == "gpu")
    length = config.model.context_length
    if queries_per_block(length) < length:
        names += ["explicit", "blocks"]
    chosen = choose_implementation(config.model, dtype_of(config.training.dtype))
    return [name for name in names if name != chosen]


def matrix_product(workload: Workload) -> tuple[Job, float]:
    """A product of two random matrices in the default dtype, and its FLOPs."""
    size = workload.peak_size
    dtype = dtype_of("auto")
    a, b = jax.random.normal(jax.random.key(1), (2, size, size)).astype(dtype)
    product = jax.jit(jnp.matmul)
    return lambda: jax.block_until_ready(product(a, b)), 2.0 * size**3


def memory_copy(num_bytes: int = 2**28) -> tuple[Job, float]:
    """A copy of float32 numbers, and the bytes it reads and writes."""
    x = jax.random.normal(jax.random.key(2), (num_bytes // 4,))
    copy = jax.jit(lambda x: x + 1.0)
    return lambda: jax.block_until_ready(copy(x)), 2.0 * num_bytes


def variant(
    workload: Workload, name: str, ablation: str = "", **sections: dict[str, Any]
) -> Trainer:
    """A trainer of one of `VARIANTS`, with an ablation or changed keys by section."""
    sections["model"] = {**VARIANTS[name], **sections.get("model", {})}
    return Trainer(make_config(workload, **sections), workload, ablation)


def peak_bytes() -> float:
    """Peak memory in bytes: of the first device if JAX reports it, else of this process."""
    import resource

    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return float(stats["peak_bytes_in_use"])
    unit = 1 if sys.platform == "darwin" else 1024
    return float(unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
