"""Small JSON files that are replaced atomically."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from builderd.domain.errors import EngineUnavailable
from builderd.linux.atomic_files import replace


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
