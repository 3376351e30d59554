"""Small JSON files that are replaced atomically, and the dataclasses that they store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from builderd.domain.errors import EngineUnavailable
from builderd.linux.atomic_files import replace

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


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
    """Return the dataclass of a stored object, without the fields that only another version knows."""
    names = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in found.items() if name in names})


def read_if_there(path: str | Path) -> str | None:
    """Return the file's text, None when there is no such file."""
    try:
        return Path(path).read_text()
    except FileNotFoundError:
        return None
