"""The parameters of a decoder: the kind of each, by name, and those that start at a constant."""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import linen as nn

from nfllm.config import ConfigError

Params = dict[str, Any]
"""A decoder's parameters, or their gradients: a nested dictionary of arrays by name."""
Variables = dict[str, Any]
"""The collections of variables that a module is applied to, by name; `params` is one."""
Path: TypeAlias = tuple[jax.tree_util.DictKey, ...]
"""Where a parameter is in the tree, as `jax.tree_util.tree_leaves_with_path` gives it."""
Mask: TypeAlias = Callable[[Params], Params]
"""From parameters to the tree of booleans that says which of them are meant."""
Start: TypeAlias = Callable[[jax.Array], jax.Array]
"""From a random key to a parameter's initial value."""


class Kind(enum.Enum):
    """How a parameter is updated."""

    DECAYED = "decayed"
    UNDECAYED = "undecayed"
    SLOPE = "slope"  # decays with `optimizer.decay_slopes`
    STATISTIC = "statistic"  # measured, not learned: see `nfllm.training.updates`


_OF_MATRICES = ("qkv_", "qk_", "q_", "kv_", "out_", "in_", "gate_", "forget_", "refine_", "")
_MATRICES = tuple(f"{matrix}kernel" for matrix in _OF_MATRICES)
_EMBEDDINGS = ("token_embedding", "position_embedding", "head_embedding")
_BIASES = (*(f"{matrix}bias" for matrix in _OF_MATRICES), "head_bias")
_STATISTICS = ("norm_gate", "sigma")
_SCALARS = (
    "scale",
    "gate",
    "alpha",
    "shift",
    "embedding_gain",
    "residual_gain",
    "mlp_alpha",
    "temperature",
)
_GAINS = ("attention_branch_gain", "mlp_branch_gain", "head_gain", "skip_gain")
_SHAPING = ("softmax_gain", "identity_gain", "uniform_gain")
_PROJECTION_GAINS = tuple(
    f"{matrix}_{part}_gain" for matrix in ("value", "output") for part in ("skip", "residual")
)

KINDS: dict[str, Kind] = {
    **dict.fromkeys((*_MATRICES, *_EMBEDDINGS), Kind.DECAYED),
    **dict.fromkeys((*_BIASES, *_SCALARS, "entropy_threshold"), Kind.UNDECAYED),
    **dict.fromkeys(_STATISTICS, Kind.STATISTIC),
    **dict.fromkeys((*_GAINS, *_SHAPING, *_PROJECTION_GAINS), Kind.UNDECAYED),
    "slope": Kind.SLOPE,
    # See `nfllm.model.weight_norm`.
    **dict.fromkeys((f"{matrix}gain" for matrix in _OF_MATRICES), Kind.UNDECAYED),
    **dict.fromkeys((f"{matrix}direction" for matrix in _OF_MATRICES), Kind.STATISTIC),
}
"""The kind of each parameter, by the last part of its path."""


def name_of(path: Path) -> str:
    """The name of the parameter at a path of the tree: its parts, joined by dots."""
    return ".".join(key.key for key in path)


def kind_of(path: Path) -> Kind:
    """The declared kind of the parameter at a path of the tree.

    Raises:
      ConfigError: its name is not declared.
    """
    name = path[-1].key
    if name not in KINDS:
        where = name_of(path)
        raise ConfigError(
            f"parameter {where}: {name!r} is not declared, so whether it decays is unknown; add it "
            "to KINDS in nfllm/model/parameters.py"
        )
    return KINDS[name]


def count_parameters(params: Params) -> int:
    """Number of the model's learned parameters: without what is measured, or is part of a loss."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return sum(
        leaf.size
        for path, leaf in leaves
        if path[0].key != "objective" and kind_of(path) is not Kind.STATISTIC
    )


def constant_param(
    module: nn.Module, name: str, value: float, shape: tuple[int, ...] = ()
) -> jax.Array:
    """A float32 parameter of `module` that starts at `value`, without using a random key."""
    return start_param(module, name, lambda: jnp.full(shape, value, jnp.float32))


def start_param(module: nn.Module, name: str, start: Callable[[], jax.Array]) -> jax.Array:
    """A parameter of `module` that starts at `start()`, without using a random key.

    `module.param` derives one key for each parameter of a module by counting, so that a bias or a
    learned slope would change the initial values of the matrices after it. This way, models with
    the same seed have the same initial values in all parameters that they share.
    """
    return module.variable("params", name, start).value


def params_of_one_key(module: nn.Module, starts: Mapping[str, Start]) -> dict[str, jax.Array]:
    """Several parameters of `module` that together use the random key of one `module.param`.

    So they can replace a single parameter without changing the initial values of all others.
    """
    keys = [module.make_rng("params")] if module.is_initializing() else []
    return {
        name: start_param(module, name, functools.partial(start, *keys))
        for name, start in starts.items()
    }


def constant_params(
    module: nn.Module, group: str, starts: Mapping[str, float]
) -> dict[str, jax.Array]:
    """Float32 scalars of `module`, under the name `group`, that start at the given values."""

    def start() -> dict[str, jax.Array]:
        return {name: jnp.float32(value) for name, value in starts.items()}

    found: dict[str, jax.Array] = module.variable("params", group, start).value
    return found
