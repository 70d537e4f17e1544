"""Reading another library's config and tensors without overlooking anything in them.

Every attribute and tensor of a foreign file is read, required to have a certain value, or ignored
by name. Any other is an error if the model might depend on it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from nfllm.config import ConfigError, ModelConfig, suggest
from nfllm.convert import bookkeeping

Tensors = dict[str, np.ndarray]

# Our name of each activation of transformers, and its slope if it has one.
_ACTIVATIONS: dict[str, tuple[str, float | None]] = {
    "gelu": ("gelu", None),
    "gelu_python": ("gelu", None),
    "gelu_new": ("gelu_tanh", None),
    "gelu_fast": ("gelu_tanh", None),
    "gelu_accurate": ("gelu_tanh", None),
    "gelu_pytorch_tanh": ("gelu_tanh", None),
    "gelu_python_tanh": ("gelu_tanh", None),
    "relu": ("relu", None),
    "leaky_relu": ("leaky_relu", 0.01),
    "silu": ("silu", None),
    "swish": ("silu", None),
    "relu2": ("relu_squared", None),
    "linear": ("identity", None),
}

_SIZES = ("num_layers", "num_heads", "embed_dim", "context_length")
# Keys of initialization, training and speed.
_NOT_OF_THE_FUNCTION = (
    "embedding_dropout",
    "attention_dropout",
    "residual_dropout",
    "init_std",
    "init_std_scaling",
    "residual_init",
    "query_init_std",
    "attention_implementation",
    "scan_layers",
    "remat",
)


class ConversionError(ValueError):
    """A checkpoint that cannot be converted; the message names the file, the part and a remedy."""


class Attributes:
    """The attributes of a foreign config, each of which must be read or ignored.

    Args:
      values: the parsed config, or a part of it.
      source: where they come from, for messages.
    """

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self._left = dict(values)
        self._source = source
        self._known: set[str] = set()

    def take(self, name: str, kind: type, default: Any) -> Any:
        """The attribute's value, or `default` if it is absent; an int is accepted as a float.

        Raises:
          ConversionError: its type is neither `kind` nor that of the default.
        """
        self._known.add(name)
        value = self._left.pop(name, default)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind and value is not default:
            raise ConversionError(
                f"{self._source}: {name}={value!r} is of type {type(value).__name__}, expected "
                f"{kind.__name__}"
            )
        return value

    def take_alias(self, name: str, alias: str) -> None:
        """Renames the attribute `alias` to `name`.

        Raises:
          ConversionError: both exist and differ.
        """
        value = self._left.pop(alias, None)
        if value is not None and self._left.setdefault(name, value) != value:
            raise ConversionError(
                f"{self._source}: {name}={self._left[name]!r}, but {alias}={value!r}; transformers "
                "uses both names for one attribute, so keep only the right one"
            )

    def take_dropout(self, name: str, default: float) -> float:
        """A dropout probability; the default if the value is not in [0, 1)."""
        value: float = self.take(name, float, default)
        return value if 0 <= value < 1 else default

    def take_init_std(self) -> float:
        """Initial standard deviation of matrices; 0.02 if the file's is not positive."""
        value: float = self.take("initializer_range", float, 0.02)
        return value if value > 0 else 0.02

    def require(self, name: str, *values: object) -> None:
        """Raises ConversionError unless the attribute is absent or one of the synonyms `values`."""
        self._known.add(name)
        found = self._left.pop(name, values[0])
        if found not in values:
            raise ConversionError(
                f"{self._source}: {name}={found!r} is not supported; nfllm computes only what "
                f"{name}={values[0]!r} does"
            )

    def ignore(self, names: Iterable[str]) -> None:
        """Ignores attributes that do not change what the model computes."""
        for name in names:
            self._left.pop(name, None)

    def activation(self, name: str, default: str) -> tuple[str, float | None]:
        """Our name of the activation in attribute `name`, and its slope if it has one."""
        value = self.take(name, str, default)
        if value not in _ACTIVATIONS:
            raise ConversionError(
                f"{self._source}: {name}={value!r} is not an activation that nfllm has; "
                f"{suggest(value, _ACTIVATIONS)}"
            )
        return _ACTIVATIONS[value]

    def finish(self, *, notes: bool = True) -> None:
        """Checks the attributes that were not read.

        Bookkeeping attributes are ignored. Other unknown attributes are ignored with a warning, if
        `notes` allows them and their names have nothing to do with the computation.

        Raises:
          ConversionError: an attribute might change what the model computes: by its name, because
            `notes` is False, or because the checkpoint brings its own code that may read it.
        """
        own_code = [name for name in self._left.get("auto_map") or () if "AutoModel" in name]
        self.ignore(bookkeeping.NAMES)
        for name, value in self._left.items():
            if own_code or not notes or bookkeeping.may_change_logits(name, value):
                raise ConversionError(
                    f"{self._source}: the attribute {name}={value!r} is not understood, and might "
                    f"change what the model computes; {suggest(name, self._known)}; if it does "
                    "not, remove it from the file"
                )
        if own_code:
            logging.warning(
                "%s names its own code (auto_map), which is not run: the model is read as "
                "transformers' model of that model_type",
                self._source,
            )
        if self._left:
            logging.warning(
                "%s: ignored, as by transformers: %s", self._source, ", ".join(self._left)
            )


class TensorReader:
    """The tensors of a checkpoint, in float32, with their shapes checked; each must be read."""

    def __init__(self, tensors: Mapping[str, np.ndarray], source: str) -> None:
        self._left = dict(tensors)
        self._source = source

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The tensor `name`.

        Raises:
          ConversionError: it is missing, of another shape, or not of a float type.
        """
        if name not in self._left:
            raise ConversionError(f"{self._source} lacks the tensor {name!r} of shape {shape}")
        tensor = self._left.pop(name)
        if tensor.shape != shape:
            raise ConversionError(
                f"{self._source}: {name!r} has shape {tensor.shape}, but by its config.json it "
                f"should have {shape}"
            )
        if tensor.dtype.name not in ("float64", "float32", "float16", "bfloat16"):
            raise ConversionError(
                f"{self._source}: {name!r} is of type {tensor.dtype}; only float weights can be "
                "read, so dequantize the model first"
            )
        return tensor.astype(np.float32)

    def take_layers(self, name: str, num_layers: int, shape: tuple[int, ...]) -> np.ndarray:
        """The tensors `name.format(layer)` of all layers, stacked: [L, ...]."""
        return np.stack([self.take(name.format(layer), shape) for layer in range(num_layers)])

    def finish(self) -> None:
        """Raises ConversionError naming the first tensor that was not read."""
        for name, tensor in self._left.items():
            raise ConversionError(
                f"{self._source}: the tensor {name!r} of shape {tensor.shape} does not belong to "
                "the model that its config.json describes"
            )


def split_layers(stacked: Tensors, prefix: str) -> Tensors:
    """Splits tensors `[L, ...]` into one for each layer, named `prefix.format(layer) + name`."""
    return {
        prefix.format(layer) + name: values
        for name, layers in stacked.items()
        for layer, values in enumerate(layers)
    }


def activation_name(config: ModelConfig) -> str:
    """The name in transformers of a model's activation.

    Raises:
      ConfigError: transformers has no such activation.
    """
    slope = config.slope if config.activation == "leaky_relu" else None
    for name, ours in _ACTIVATIONS.items():
        if ours == (config.activation, slope):
            return name
    if config.activation == "leaky_relu":
        raise ConfigError(
            f"model.negative_slope={config.slope} cannot be expressed in transformers, whose "
            "leaky_relu has the slope 0.01"
        )
    possible = sorted({ours for ours, _ in _ACTIVATIONS.values()})
    raise not_expressible("activation", config.activation, possible)


LAYERNORM: dict[str, list[Any]] = {
    "normalization": ["layernorm"],
    "final_normalization": ["layernorm"],
}
"""Keys of which GPT-2 and GPT-NeoX can express only some values, with these values."""


def check_form(
    config: ModelConfig, *, some: Mapping[str, Sequence[Any]], every: Collection[str] = ()
) -> None:
    """Raises ConfigError if a model of transformers cannot express a key.

    Activations are checked by `activation_name`.

    Args:
      config: the model.
      some: keys of which only some values can be expressed, with these values.
      every: keys of which every value can be expressed, beside those of every architecture.
    """
    written = {"mlp_dim", "norm_epsilon", "attention_bias", "mlp_bias", "tie_embeddings"}
    of_activation = {"activation", "negative_slope", "slope_sharing", "helu_margin"}
    check_expressed(
        config,
        "transformers",
        every={*written, *of_activation, *every, "architecture", "rotary_fraction", "rotary_base"}
        - some.keys(),
        some={"num_kv_heads": [None, config.num_heads], **some},
    )


def check_expressed(
    config: ModelConfig,
    form: str,
    *,
    every: Collection[str],
    some: Mapping[str, Sequence[Any]],
) -> None:
    """Raises ConfigError for the first key of a model that a foreign form cannot express.

    A key in neither `every` nor `some` must have its default, so that none is overlooked. Sizes,
    and keys that do not change what the parameters compute, can be expressed in every form.

    Args:
      config: the model.
      form: name of the foreign form, for the message.
      every: keys of which every value can be expressed.
      some: keys of which only some values can be expressed, with these values.
    """
    for field in dataclasses.fields(config):
        if field.name in _SIZES or field.name in _NOT_OF_THE_FUNCTION or field.name in every:
            continue
        possible = some.get(field.name, [field.default])
        if (value := getattr(config, field.name)) not in possible:
            raise not_expressible(field.name, value, possible, form)


def not_expressible(
    key: str, value: object, possible: Iterable[Any], form: str = "transformers"
) -> ConfigError:
    """An error about a value of a model's `key` that a foreign checkpoint cannot express."""
    names = " or ".join(map(repr, possible))
    return ConfigError(
        f"model.{key}={value!r} cannot be expressed in {form}, where it must be {names}"
    )
