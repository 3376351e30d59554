"""Packages: what a Node project's ``package.json`` says of what is run. Taken for data: it may say anything.

Format: https://docs.npmjs.com/cli/configuring-npm/package-json
"""

from __future__ import annotations

import json
from dataclasses import dataclass

#: A larger one says nothing.
MAX_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class Package:
    """``main`` is the file that the folder stands for; ``commands`` are its scripts."""

    main: str | None
    commands: tuple[str, ...]


def read_package(content: bytes) -> Package | None:
    """What it says, or None where it cannot be read."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    main, scripts = document.get("main"), document.get("scripts")
    commands = scripts.values() if isinstance(scripts, dict) else ()
    return Package(main if isinstance(main, str) else None, tuple(one for one in commands if isinstance(one, str)))
