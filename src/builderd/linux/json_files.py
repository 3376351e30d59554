"""Small JSON files that are replaced atomically."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any

from builderd.domain.errors import EngineUnavailable
from builderd.linux.durable import sync


def write_json(path: Path, value: object, *, durable: bool = False) -> None:
    """Replace the file atomically, readable by its owner only.

    A power cut soon after may leave an empty file, unless it is ``durable``: that waits for the disk, some
    milliseconds.
    """
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(value, file)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    unfinished.rename(path)
    if durable:
        sync(path.parent)


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
