"""Small JSON files that are replaced atomically, and the dataclasses that they hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from builderd.domain.errors import EngineUnavailable
from builderd.linux.atomic_files import replace

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
import os

T = TypeVar("T", bound="DataclassInstance")

#: Field of a dataclass for what a later version stored beside the fields that this one knows.
UNKNOWN = "unknown"


def write_json(path: Path, value: object, *, durable: bool = False) -> None:
    """Replace the file atomically, readable by its owner only.

    A power cut soon after may leave an empty file, unless it is ``durable``: that waits for the disk, some
    milliseconds.
    """
    replace(path, json.dumps(value).encode(), durable=durable)


def read_json(path: Path, remedy: str) -> Any:
    """Return the parsed file, None when there is none.

    Raises ``EngineUnavailable`` when it is not JSON, with the file's name and the remedy.
    """
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise EngineUnavailable(f"{path} is damaged. {remedy}") from error


def from_stored(kind: type[T], found: Mapping[str, Any]) -> T:
    """Return the dataclass of a stored object.

    Fields that only a later version knows are ignored, or kept for ``to_stored`` where the dataclass has ``unknown``.
    """
    names = {field.name for field in fields(kind)}
    values = {name: value for name, value in found.items() if name in names}
    if UNKNOWN in names:
        values[UNKNOWN] = {name: value for name, value in found.items() if name not in names}
    return kind(**values)


def to_stored(value: DataclassInstance) -> dict[str, Any]:
    """Return the object to store, with the fields that a later version had stored."""
    known = asdict(value)
    return {**known.pop(UNKNOWN, {}), **known}


def read_small(path: str | Path) -> str:
    """Return the file's text. Raises ``OSError`` and ``UnicodeDecodeError``."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return b"".join(iter(lambda: os.read(descriptor, 1 << 16), b"")).decode()
    finally:
        os.close(descriptor)


def read_if_there(path: str | Path) -> str | None:
    """Return the file's text, None when there is no such file."""
    try:
        return read_small(path)
    except FileNotFoundError:
        return None
