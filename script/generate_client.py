"""Generates the synchronous client ``client/_sync`` from the asynchronous one, ``client/_async``.

    python3 script/generate_client.py

``script/venv``, ``script/check`` and ``script/test`` call it, and so does the build of a wheel, as hatchling's hook.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import unasync
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

CLIENT = Path(__file__).resolve().parents[1] / "src/builderd/client"
SOURCE, TARGET = CLIENT / "_async", CLIENT / "_sync"
HEAD = '"""Generated from ``_async`` by ``script/generate_client.py``: change that."""\n\n'

#: Names that do not follow from unasync's own rules: it makes SyncX of AsyncX.
NAMES = {
    "AbstractAsyncContextManager": "AbstractContextManager",
    "AsyncBaseTransport": "BaseTransport",
    "AsyncWebSocketSession": "WebSocketSession",
    "_async": "_sync",
    "aclose": "close",
    "aclosing": "closing",
    "aiter_lines": "iter_lines",
    "aiter_raw": "iter_raw",
    "aiter_bytes": "iter_bytes",
    "aread": "read",
    "async_sleep": "sleep",
    "in_thread": "at_once",
}


def names() -> dict[str, str]:
    """Return all replacements: each class ``AsyncX`` of the source, and of httpx2, becomes ``X``."""
    own = {
        word
        for path in SOURCE.glob("*.py")
        for line in path.read_text().splitlines()
        if line.startswith("class Async")
        for word in [line.removeprefix("class ").partition("(")[0].partition("[")[0].rstrip(":")]
    }
    return {"AsyncClient": "Client", **{name: name.removeprefix("Async") for name in own}, **NAMES}


def generate() -> None:
    """Bring ``client/_sync`` to what the asynchronous client makes. Files change whole: checks and tests read them."""
    TARGET.mkdir(exist_ok=True)
    sources = sorted(SOURCE.glob("*.py"))
    with tempfile.TemporaryDirectory() as folder:
        rule = unasync.Rule(fromdir=f"{SOURCE}/", todir=f"{folder}/", additional_replacements=names())
        unasync.unasync_files([str(path) for path in sources], [rule])
        for made in Path(folder).glob("*.py"):
            text = HEAD + _without_docstring(made.read_text())
            target = TARGET / made.name
            if not target.exists() or target.read_text() != text:
                changed = target.with_suffix(".new")
                changed.write_text(text)
                changed.replace(target)
    for path in TARGET.glob("*.py"):
        if not (SOURCE / path.name).exists():
            path.unlink()


def _without_docstring(text: str) -> str:
    _, _, rest = text.partition('"""')
    return rest.partition('"""')[2].lstrip("\n")


class ClientBuildHook(BuildHookInterface[Any]):
    """Makes the synchronous client part of each wheel and source distribution."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Generate it before hatchling collects the files."""
        if SOURCE.exists():
            generate()


if __name__ == "__main__":
    generate()
