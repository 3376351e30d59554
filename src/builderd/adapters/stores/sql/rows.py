"""Between values of the domain and rows: fields and columns share their names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def row_of(value: DataclassInstance) -> dict[str, Any]:
    """``{field: what it holds}``, not copied and not descended into."""
    return {name: getattr(value, name) for name in _names(type(value))}


def without(row: Mapping[str, Any], *key: str) -> dict[str, Any]:
    """What an update sets: never the key, since SQLite then visits every row that points at it."""
    return {name: value for name, value in row.items() if name not in key}


@cache
def _names(kind: type[DataclassInstance]) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))
