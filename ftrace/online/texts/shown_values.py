"""Which values of a row a person reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

_LISTS_OF_NUMBERS = ("proponent_ids",)  # all others, such as token ids, nobody reads


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row without lists of numbers, such as token ids; other values are chosen when it becomes a table."""
    return {str(name): value for name, value in row.items() if name in _LISTS_OF_NUMBERS or not _are_numbers(value)}


def shown_columns(schema: pa.Schema) -> list[str]:
    """List the columns of texts, numbers and lists of texts."""
    return [field.name for field in schema if field.name in _LISTS_OF_NUMBERS or _is_shown(field.type)]


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and not isinstance(value[0], str)


def _is_shown(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_text(kind.value_type)
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return is_number or _is_text(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
