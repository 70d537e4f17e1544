"""Registration of the user's own activations, normalizations and attention transforms."""

from __future__ import annotations

import functools
import hashlib
import linecache
import os
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from nfllm.config import ACTIVATION_NAMES, NORMALIZATION_NAMES, ConfigError, Statistics
from nfllm.config.names import ATTENTION_TRANSFORM_NAMES, STATISTICS, Names, Part, Source
from nfllm.model.activations import ACTIVATIONS, STARTS
from nfllm.model.normalizations import NORMALIZATIONS
from nfllm.model.parameters import KINDS, Kind
from nfllm.model.part_checks import check_apart, check_form, check_module, now_or_later
from nfllm.model.softmax import ATTENTION_TRANSFORMS


def register_activation(
    name: str,
    function: Callable[..., jax.Array],
    *,
    parameters: Mapping[str, str] = {},
    start: Mapping[str, float] = {},
    statistics: Statistics = "norm-free",
) -> None:
    """Makes `name` a value of `model.activation`.

    Args:
      name: a name that no other activation has.
      function: maps the pre-activation, [B, T, F] of any float type, and each parameter by keyword,
        a float32 scalar, to an array of the shape and type of the pre-activation.
      parameters: learned scalars, one for each layer, and their kind: `decayed` or `undecayed`.
      start: initial value of each parameter.
      statistics: `norm-free`, or `normalised` if it divides by statistics of the token.

    Raises:
      ConfigError: the name is taken, a kind or a start is not declared, or the function changes
        shape or type, or mixes positions.

    Example:
      >>> import jax, nfllm
      >>> nfllm.register_activation(
      ...     "swish",
      ...     lambda x, beta: (x * jax.nn.sigmoid(beta * x)).astype(x.dtype),
      ...     parameters={"beta": "undecayed"},
      ...     start={"beta": 1.0},
      ... )
    """
    source = caller()
    what = f"activation {name!r}"
    if _is_registered("activation", ACTIVATION_NAMES, name, source, function):
        return
    part = Part(_checked(what, statistics), source)
    kinds = _kinds(what, parameters)
    if odd := sorted(start.keys() ^ kinds.keys()):
        raise ConfigError(f"{what}: {odd[0]!r} must be in parameters, and in start with a number")
    starts = {parameter: float(value) for parameter, value in start.items()}

    def at_start(x: jax.Array) -> jax.Array:
        return function(x, **{key: np.float32(value) for key, value in starts.items()})

    check_form(what, at_start)
    now_or_later(lambda: check_apart(what, at_start))
    if starts:
        ACTIVATIONS[name] = lambda x, learned: function(x, **learned)
        STARTS[name] = starts
    else:
        ACTIVATIONS[name] = lambda x, _: function(x)
    _declare(ACTIVATION_NAMES, name, part, kinds)


def register_normalization(
    name: str,
    factory: Callable[..., nn.Module],
    *,
    parameters: Mapping[str, str],
    statistics: Statistics,
) -> None:
    """Makes `name` a value of `model.normalization`, and of the normalizations by site.

    Args:
      name: a name that no other normalization has.
      factory: `factory(epsilon=..., dtype=..., **options)` gives a Flax module that maps [..., D]
        to [..., D] of type `dtype`; a module class with the fields `epsilon` and `dtype` will do.
        `options` are those of every Flax module, `name` and `parent`.
      parameters: all of the module's parameters, and their kind: `decayed`, `undecayed`, or
        `statistic` if it is measured and `record_update` gives its next value.
      statistics: `norm-free`, `frozen`, or `normalised` if it divides by statistics of the token.

    Raises:
      ConfigError: the name is taken, a parameter's kind is not declared, or the module changes
        shape, gives another type, or mixes positions.
    """
    source = caller()
    what = f"normalization {name!r}"
    if _is_registered("normalization", NORMALIZATION_NAMES, name, source, factory):
        return
    part = Part(_checked(what, statistics), source)
    kinds = _kinds(what, parameters)
    apply = check_module(what, factory, kinds)
    now_or_later(lambda: check_apart(what, apply))
    NORMALIZATIONS[name] = factory
    _declare(NORMALIZATION_NAMES, name, part, kinds)


def register_attention_transform(name: str, function: Callable[[jax.Array], jax.Array]) -> None:
    """Makes `name` a value of `model.attention_transform`.

    Args:
      name: a name that no other attention transform has.
      function: an elementwise function of the attention logits q · k / sqrt(K), float32
        [B, H, T, S], before the causal mask and the softmax; it must keep their shape and type.

    Raises:
      ConfigError: the name is taken, or the function changes shape or type, or mixes entries.

    Example:
      >>> import jax.numpy as jnp, nfllm
      >>> nfllm.register_attention_transform("soft_cap", lambda logits: 50 * jnp.tanh(logits / 50))
    """
    source = caller()
    what = f"attention transform {name!r}"
    if _is_registered("attention transform", ATTENTION_TRANSFORM_NAMES, name, source, function):
        return
    check_form(what, function, "entry")
    now_or_later(lambda: check_apart(what, function, "entry"))
    ATTENTION_TRANSFORMS[name] = function
    _declare(ATTENTION_TRANSFORM_NAMES, name, Part(source=source), {})


def caller() -> Source:
    """The line that called the function that calls this one, and the hash of its file."""
    frame = sys._getframe(2)
    file = frame.f_code.co_filename
    text = "".join(linecache.getlines(file))
    digest = hashlib.sha256(text.encode()).hexdigest() if text else ""
    return Source(os.path.abspath(file) if os.path.exists(file) else file, frame.f_lineno, digest)


def is_known(kind: str, sources: Mapping[str, Source | None], name: str, source: Source) -> bool:
    """Whether the same line of the same file has registered the name before.

    Raises:
      ConfigError: the name is invalid, or was registered elsewhere.
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise ConfigError(f"{kind} {name!r}: a name consists of letters, digits and '_'")
    if name not in sources:
        return False
    known = sources[name]
    if known is None:
        raise ConfigError(f"{kind} {name!r} is nfllm's own; choose another name")
    if known == source and source.sha256:
        return True
    raise ConfigError(
        f"{kind} {name!r} was registered by {known.file}, line {known.line}; choose another "
        "name, or restart Python if that file has changed, since compiled programs contain its "
        "earlier content"
    )


_FUNCTIONS: dict[tuple[str, str], object] = {}
"""What was registered, by kind and name."""


def _is_registered(kind: str, names: Names, name: str, source: Source, function: object) -> bool:
    """Whether the same line has registered the same function, as when a file is read again.

    Raises:
      ConfigError: as `is_known`, or the function has closed over other values since.
    """
    if not is_known(kind, names.sources(), name, source):
        _FUNCTIONS[kind, name] = function
        return False
    try:
        is_same = _are_same(_FUNCTIONS.get((kind, name), function), function)
    except (RecursionError, TypeError, ValueError):  # a function that knows itself, odd values
        is_same = True
    if not is_same:
        raise ConfigError(
            f"{kind} {name!r} was registered by the same line with other values (of a variable or "
            "a default); give each its own name, such as one with the value in it"
        )
    return True


def _are_same(old: Any, new: Any) -> bool:
    """Whether two functions have equal code, defaults and values of variables around them.

    What is no function is compared by its value. What has none, such as a class or a module, counts
    as the same, since the same line of the same file made it.
    """
    if old is new:
        return True
    if type(old) is type(new) and hasattr(old, "__wrapped__") and hasattr(new, "__wrapped__"):
        return _are_same(old.__wrapped__, new.__wrapped__)  # as by jax.jit
    if isinstance(old, functools.partial) and isinstance(new, functools.partial):
        return _are_same((old.func, old.args, old.keywords), (new.func, new.args, new.keywords))
    if isinstance(old, types.FunctionType) and isinstance(new, types.FunctionType):
        return old.__code__ == new.__code__ and _are_same(_values(old), _values(new))
    if isinstance(old, tuple | list) and type(old) is type(new):
        return len(old) == len(new) and all(map(_are_same, old, new))
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() == new.keys() and all(_are_same(old[key], new[key]) for key in old)
    has_value = not isinstance(old, type) and type(old).__eq__ is not object.__eq__
    return type(old) is type(new) and (not has_value or bool(np.all(old == new)))


def _values(function: types.FunctionType) -> list[Any]:
    """The defaults of a function, and the values of the variables that it closes over."""
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    return [function.__defaults__, function.__kwdefaults__, cells]


def _declare(names: Names, name: str, part: Part, kinds: Mapping[str, Kind]) -> None:
    for parameter, kind in kinds.items():
        KINDS.setdefault(parameter, kind)
    names.declare(name, part)


def _kinds(what: str, parameters: Mapping[str, str]) -> dict[str, Kind]:
    """The declared kinds, which must agree with other declarations of the same names."""
    possible = {kind.value: kind for kind in Kind if kind is not Kind.SLOPE}
    kinds: dict[str, Kind] = {}
    for parameter, value in parameters.items():
        if value not in possible:
            raise ConfigError(
                f"{what}: {value!r} of parameter {parameter!r} is no kind; choose from "
                f"{', '.join(sorted(possible))}"
            )
        kinds[parameter] = possible[value]
        elsewhere = KINDS.get(parameter, kinds[parameter])
        if elsewhere is not kinds[parameter]:
            raise ConfigError(
                f"{what}: parameters called {parameter!r} are {elsewhere.value} elsewhere, not "
                f"{value}; choose another name for it"
            )
    return kinds


def _checked(what: str, statistics: Statistics) -> Statistics:
    if statistics not in STATISTICS:
        raise ConfigError(
            f"{what}: statistics={statistics!r} must be one of {', '.join(STATISTICS)}"
        )
    return statistics
