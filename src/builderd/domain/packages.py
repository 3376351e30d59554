"""Node's ``package.json``: the main file and the scripts. Untrusted data.

Format: https://docs.npmjs.com/cli/configuring-npm/package-json
"""

from __future__ import annotations

import json
from dataclasses import dataclass

#: A larger file is ignored.
MAX_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class Package:
    """``main`` is the file that an import of the folder runs; ``commands`` are the scripts' command lines.

    ``has_build``: there is a script ``build``.
    """

    main: str | None
    commands: tuple[str, ...]
    has_build: bool = False


def read_package(content: bytes) -> Package | None:
    """Parse a ``package.json``; None if it is invalid."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    main, scripts = document.get("main"), document.get("scripts")
    named = scripts if isinstance(scripts, dict) else {}
    commands = tuple(one for one in named.values() if isinstance(one, str))
    has_build = isinstance(named.get("build"), str) and bool(named["build"].strip())
    return Package(main if isinstance(main, str) else None, commands, has_build)
