"""The matrix products of a training step that is lowered, for any platform, and not run."""

import re
from typing import NamedTuple

import jax
from training_parts import make_parts, random_batch

from nfllm.config import Config
from nfllm.data.batches import Batch

_TENSOR = r"tensor<((?:\d+x)*)(\w+)>"
_FUNCTION = re.compile(r"^  func\.func \w+ @([\w.$]+)\((.*?)^  }", re.MULTILINE | re.DOTALL)
_CALL = re.compile(r"\bcall @([\w.$]+)\(.*\n")
_DOT = re.compile(rf"stablehlo\.dot_general .*: \({_TENSOR}, {_TENSOR}\) -> {_TENSOR}")


class Tensor(NamedTuple):
    shape: tuple[int, ...]
    dtype: str


class Product(NamedTuple):
    left: Tensor
    right: Tensor
    result: Tensor


def lowered_step(config: Config, platform: str = "cpu") -> str:
    """StableHLO of the training step on `random_batch`, as lowered for a platform.

    Functions stand where they are called: an operation is there as often as it runs, but for those
    in the body of a loop, which are there once.
    """
    parts = make_parts(config)
    state = jax.eval_shape(parts.init, jax.random.key(0))
    micro_batches = config.training.gradient_accumulation or 1
    batch = Batch(*(x.reshape(micro_batches, -1, x.shape[-1]) for x in random_batch(0)))
    traced = jax.jit(parts.train_step).trace(state, batch)
    return inlined(traced.lower(lowering_platforms=(platform,)).as_text())


def inlined(program: str) -> str:
    """`main`, with every function's body behind each of its calls.

    Whether equal computations share one function differs between versions of JAX.
    """
    bodies = {match[1]: match[2] for match in _FUNCTION.finditer(program)}
    assert len(bodies) == program.count("func.func "), "a function was not understood"

    def expand(name: str) -> str:
        return _CALL.sub(lambda call: call[0] + expand(call[1]), bodies[name])

    return expand("main")


def products(program: str) -> list[Product]:
    """Operands and result of every matrix product in a StableHLO program."""

    def tensor(dimensions: str, dtype: str) -> Tensor:
        return Tensor(tuple(map(int, dimensions.split("x")[:-1])), dtype)

    found = [
        Product(*(tensor(*groups[i : i + 2]) for i in (0, 2, 4)))
        for groups in (match.groups() for match in _DOT.finditer(program))
    ]
    assert len(found) == program.count("stablehlo.dot_general"), "a product was not understood"
    return found
