"""Rotary embedding in a foreign config, which transformers 4 and 5 store in different places."""

from __future__ import annotations

from nfllm.convert.foreign import Attributes, ConversionError


def nested_rotary(attributes: Attributes) -> Attributes:
    """The attributes in `rope_parameters` (transformers 5), which must be of the default kind.

    Raises:
      ConversionError: the rotation is of another kind, for example scaled to a longer context.
    """
    attributes.require("rope_scaling", None, {}, {"type": "default"}, {"rope_type": "default"})
    nested = Attributes(attributes.take("rope_parameters", dict, None) or {}, "rope_parameters")
    nested.require("rope_type", "default")
    nested.require("type", "default")
    return nested


def stated_once(
    nested: Attributes, plain: Attributes, names: tuple[str, str], default: float
) -> float:
    """The value of an attribute that is stored under several names, which must agree.

    It may be nested in `rope_parameters` under its new name (transformers 5), or be at the top
    level under its old or new name (transformers 4). `names` are (new, old), which may be equal.

    Raises:
      ConversionError: the values differ.
    """
    new, old = names
    found = {
        f"rope_parameters.{new}": nested.take(new, float, None),
        old: plain.take(old, float, None),
    }
    if not any(value is not None for value in found.values()):
        found["default"] = default
    if new != old:
        found[new] = plain.take(new, float, None)
    stated = {name: value for name, value in found.items() if value is not None}
    if len(set(stated.values())) > 1:
        raise ConversionError(
            f"config.json contradicts itself about rotary embedding: {stated}; keep the right one"
        )
    return next(iter(stated.values()))
