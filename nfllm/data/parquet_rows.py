"""Rows of a Parquet file, read in small batches, so that damage loses few rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nfllm.data.damage import DamagedError, damage
from nfllm.data.records import MalformedPolicy, not_utf8

_BATCH_ROWS = 256


def parquet_rows(
    table: Any, columns: list[str], path: Path, policy: MalformedPolicy
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows with their numbers. In a damaged row group, the rows from the damage on are lost."""
    import pyarrow

    row = 0
    for group in range(table.num_row_groups):
        stop = row + table.metadata.row_group(group).num_rows
        try:
            with damage(pyarrow.ArrowException):
                for batch in table.iter_batches(_BATCH_ROWS, [group], columns):
                    for values in _batch_rows(batch, path, row, policy):
                        row += 1
                        if values is not None:
                            yield row - 1, values
        except DamagedError as error:
            rows = f"rows {row} to {stop - 1} (row group {group})"
            policy.report(f"{path}: damaged or truncated in {rows}: {error}", stop - row)
        row = stop


def _batch_rows(
    batch: Any, path: Path, first: int, policy: MalformedPolicy
) -> Iterator[dict[str, Any] | None]:
    """The rows of a batch; None for a malformed one, since Arrow does not check UTF-8."""
    try:
        yield from batch.to_pylist()
        return
    except UnicodeDecodeError:  # Arrow does not name the row
        pass
    for offset in range(batch.num_rows):
        name, values = "", {}
        try:
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                values[name] = column[offset].as_py()
        except UnicodeDecodeError as error:
            policy.report(f"{path}, row {first + offset}, field {name!r}: {not_utf8(error)}")
            yield None
        else:
            yield values


def is_plain(kind: Any) -> bool:
    """Whether `plain_fields` keeps values of this Arrow type; others may not convert to Python."""
    import pyarrow
    from pyarrow import types

    if isinstance(kind, pyarrow.BaseExtensionType):
        return is_plain(kind.storage_type)
    if types.is_dictionary(kind):
        return is_plain(kind.value_type)
    strings = (types.is_string, types.is_large_string, types.is_string_view)
    numbers = (types.is_integer, types.is_floating, types.is_boolean)
    return any(matches(kind) for matches in (*strings, *numbers))
