"""Checks of a registered part on a small input.

It must keep the shape and type of its input, declare its parameters, and not mix tokens. The last
check needs numbers, and so a device; the others need only shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import ArrayLike, DTypeLike

from nfllm.config import ConfigError
from nfllm.config.files import is_before_devices
from nfllm.model.intermediates import COLLECTIONS, UPDATES
from nfllm.model.parameters import Kind, Variables

Function = Callable[..., jax.Array]
_TYPES = (jnp.float32, jnp.bfloat16, jnp.float16)
_SHAPES = ((2, 4, 6), (2, 4, 3, 6))  # [B, T, F], and [B, T, H, K] of queries and keys
Unit = Literal["token", "entry"]
_UNITS: dict[Unit, tuple[tuple[int, ...], tuple[int, ...], str]] = {
    "token": (_SHAPES[0], (1, 2), "compute over the last axis alone"),
    "entry": ((2, 2, 4, 6), (1, 0, 2, 3), "compute entry by entry"),
}
_waiting: list[Callable[[], None]] = []
_FACTORY = "a function of epsilon and dtype, and of a Flax module's own options, that gives one"


def check_form(what: str, function: Function, unit: Unit = "token") -> None:
    """Raises ConfigError unless `function` keeps the shape and type of inputs of every type."""
    shape = _UNITS[unit][0]
    for dtype in _TYPES:
        given = jax.ShapeDtypeStruct(shape, dtype)
        found = _traced(what, function, given)
        if (getattr(found, "shape", None), getattr(found, "dtype", None)) != (shape, dtype):
            raise ConfigError(
                f"{what} makes {_named(found)} of {_named(given)}; it must keep shape and type: "
                "end with .astype(x.dtype) where it computes in float32"
            )


def check_module(
    what: str, factory: Callable[..., nn.Module], kinds: Mapping[str, Kind]
) -> Callable[[ArrayLike], jax.Array]:
    """Checks a module's output shape and `dtype`, and that each parameter's kind is declared.

    Returns:
      The module as a function of its input, with parameters drawn at random.

    Raises:
      ConfigError: the module does not pass.
    """
    for dtype in _TYPES:
        module = _made(what, factory, dtype)
        for shape in _SHAPES:
            given = jax.ShapeDtypeStruct(shape, jnp.float32)

            def start(x: jax.Array, module: nn.Module = module) -> Any:
                return module.init_with_output(jax.random.key(0), x)

            y, variables = _traced(what, start, given)
            if (y.shape, y.dtype) != (shape, dtype):
                wanted = _named(jax.ShapeDtypeStruct(shape, dtype))
                raise ConfigError(
                    f"{what} makes {_named(y)} of {_named(given)} where dtype is "
                    f"{jnp.dtype(dtype).name}; it must give {wanted}"
                )
            _check_parameters(what, variables, kinds)

    def apply(x: ArrayLike) -> jax.Array:
        module = _made(what, factory, jnp.float32)
        shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x), x).get("params", {})
        rng = np.random.default_rng(0)
        params = jax.tree.map(lambda leaf: rng.normal(1, 0.3, leaf.shape).astype("f"), shapes)
        return jnp.asarray(module.apply({"params": params}, x))

    return apply


def check_apart(
    what: str, function: Callable[[jax.Array], jax.Array], unit: Unit = "token"
) -> None:
    """Raises ConfigError if a token's output depends on another token, or on its position.

    A part that mixes positions would see the tokens that it helps to predict. With the `unit`
    "entry", the same is checked for each entry of [B, H, T, S].
    """
    rng = np.random.default_rng(1)
    shape, place, remedy = _UNITS[unit]
    x = rng.normal(size=shape).astype(np.float32)
    changed, cotangent, others = x.copy(), np.zeros_like(x), np.ones(shape, bool)
    changed[place] = rng.normal(size=np.shape(x[place]))
    cotangent[place] = 1.0
    others[place] = False
    axis = len(place) - 1
    order = rng.permutation(shape[axis])
    permuted = np.take(x, order, axis)
    with jax.ensure_compile_time_eval():
        # One program for all three, so that rounding is the same; a derivative's may differ.
        at_rest, moved, mixed = (
            np.asarray(function(jnp.asarray(z))) for z in (x, changed, permuted)
        )
        _, backward = jax.vjp(function, jnp.asarray(x))
        gradient = np.asarray(backward(jnp.asarray(cotangent))[0])
    if not np.isfinite(at_rest).all():
        raise ConfigError(f"{what} gives values that are not finite for inputs between -4 and 4")
    if not np.isfinite(gradient).all():
        raise ConfigError(
            f"{what} has a derivative that is not finite for inputs between -4 and 4, so training "
            "would fail; where jnp.where chooses a branch, give the other branch safe inputs too: "
            "its derivative is computed and multiplied by 0"
        )
    if np.any((moved != at_rest)[others]) or np.any(gradient[others]):
        raise ConfigError(
            f"{what} mixes positions: what it gives for one {unit} changes with another, which may "
            f"come later; {remedy}"
        )
    if not np.allclose(mixed, np.take(at_rest, order, axis), rtol=1e-4, atol=1e-5):
        raise ConfigError(
            f"{what} depends on where a {unit} stands: in another order it gives other values; "
            f"{remedy}"
        )


def now_or_later(check: Callable[[], None]) -> None:
    """Runs a check that needs a device, now or, if devices are not configured yet, later."""
    if is_before_devices():
        _waiting.append(check)
    else:
        check()


def check_waiting() -> None:
    """Runs the checks that are waiting for a device.

    Raises:
      ConfigError: a part does not pass.
    """
    while _waiting:
        _waiting[0]()
        _waiting.pop(0)


def _made(what: str, factory: Callable[..., nn.Module], dtype: DTypeLike) -> nn.Module:
    try:
        module = factory(epsilon=1e-5, dtype=dtype, parent=None)
    except Exception as error:
        raise ConfigError(f"{what}: the factory must be {_FACTORY} ({_line(error)})") from error
    if not isinstance(module, nn.Module):
        raise ConfigError(
            f"{what}: the factory gives a {type(module).__name__}; it must be {_FACTORY}"
        )
    return module


def _check_parameters(what: str, variables: Variables, kinds: Mapping[str, Kind]) -> None:
    for collection in variables.keys() - {"params", UPDATES, *COLLECTIONS}:
        raise ConfigError(
            f"{what} has the collection {collection!r} beside its parameters; what is measured is "
            "a parameter of the kind 'statistic', and record_update gives its next value"
        )
    leaves = jax.tree_util.tree_leaves_with_path(variables.get("params", {}))
    found = {path[-1].key for path, _ in leaves}
    for name in sorted(found - kinds.keys()):
        raise ConfigError(
            f"{what} has a parameter {name!r} of no declared kind; give parameters={{{name!r}: "
            "'undecayed'}, or 'decayed' where weight decay is to act on it"
        )
    for name in sorted(kinds.keys() - found):
        raise ConfigError(
            f"{what} declares a parameter {name!r}, but has {', '.join(sorted(found)) or 'none'}"
        )


def _traced(what: str, function: Function, given: jax.ShapeDtypeStruct) -> Any:
    try:
        return jax.eval_shape(function, given)
    except Exception as error:
        raise ConfigError(f"{what} fails on {_named(given)}: {_line(error)}") from error


def _line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"


def _named(x: Any) -> str:
    if not hasattr(x, "shape"):
        return f"a {type(x).__name__}"
    return f"{x.dtype.name}{list(x.shape)}"
