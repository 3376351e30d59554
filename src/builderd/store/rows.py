"""Conversion of domain dataclasses to rows: fields and columns share their names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def row_of(value: DataclassInstance) -> dict[str, Any]:
    """Return ``{field: value}`` of a dataclass, shallow: values are neither copied nor converted."""
    return {name: getattr(value, name) for name in _names(type(value))}


def omit(row: Mapping[str, Any], *key: str) -> dict[str, Any]:
    """Return the row without its key columns, as an update's values.

    An update that sets the key makes SQLite visit every row that refers to it.
    """
    return {name: value for name, value in row.items() if name not in key}


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of a row that another value has now."""
    return {name: value for name, value in after.items() if value != before[name]}


@cache
def _names(kind: type[DataclassInstance]) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))
