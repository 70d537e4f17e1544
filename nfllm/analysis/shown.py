"""A one-line `repr` for tuples of arrays, such as `Moments(size=4096, mean=f32[6,4], ...)`."""

from __future__ import annotations

from typing import Any, TypeVar

Class = TypeVar("Class", bound=type)


def shown_in_a_line(cls: Class) -> Class:
    """Gives a named tuple class a `repr` with scalars as numbers, and arrays as type and shape."""
    cls.__repr__ = _in_a_line  # type: ignore[assignment,method-assign]
    return cls


def _in_a_line(self: Any) -> str:
    fields = ", ".join(f"{name}={_short(value)}" for name, value in self._asdict().items())
    return f"{type(self).__name__}({fields})"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.7g}"
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        return repr(value)
    if value.shape == () and getattr(value, "is_fully_addressable", True):
        try:
            return f"{value.item():.7g}"
        except TypeError:  # inside `jax.jit` it has no value
            pass
    name = value.dtype.name.replace("float", "f").replace("uint", "u").replace("int", "i")
    return f"{name}[{','.join(map(str, value.shape))}]"
