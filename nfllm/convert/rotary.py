"""Rotary embedding in a foreign config: transformers 4 and 5 say it in different places."""

from __future__ import annotations

from nfllm.convert.foreign import Attributes, ConversionError


def nested_rotary(attributes: Attributes) -> Attributes:
    """The attributes in `rope_parameters` (transformers 5), of the plain kind of rotation.

    Raises:
      ConversionError: the rotation is of another kind, as for contexts that were made longer.
    """
    attributes.require("rope_scaling", None, {}, {"type": "default"}, {"rope_type": "default"})
    nested = Attributes(attributes.take("rope_parameters", dict, None) or {}, "rope_parameters")
    nested.require("rope_type", "default")
    nested.require("type", "default")
    return nested


def stated_once(
    nested: Attributes, plain: Attributes, names: tuple[str, str], default: float
) -> float:
    """The nested value, else that of the old name; the new name outside must agree or be absent.

    Transformers 4 reads the new name outside, which 5 does not. Old and new name may be the same.
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
            f"config.json says two things about rotary embedding: {stated}; keep the true one"
        )
    return next(iter(stated.values()))
