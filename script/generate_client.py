"""Generates the synchronous client ``client/_sync`` from the asynchronous one, ``client/_async``.

python3 script/generate_client.py           write it anew
python3 script/generate_client.py --check   fail when it is not what the source makes
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import unasync

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


def generate(target: Path) -> None:
    """Write the synchronous client into a folder."""
    target.mkdir(parents=True, exist_ok=True)
    rule = unasync.Rule(fromdir=f"{SOURCE}/", todir=f"{target}/", additional_replacements=names())
    unasync.unasync_files([str(path) for path in sorted(SOURCE.glob("*.py"))], [rule])
    for path in target.glob("*.py"):
        path.write_text(HEAD + _without_docstring(path.read_text()))
    for argv in (["check", "--quiet", "--fix", "--select", "I"], ["format", "--quiet"]):
        config = ["--config", str(CLIENT.parents[2] / "pyproject.toml")]
        subprocess.run([Path(sys.executable).parent / "ruff", *argv, *config, str(target)], check=True)


def _without_docstring(text: str) -> str:
    _, _, rest = text.partition('"""')
    return rest.partition('"""')[2].lstrip("\n")


def main() -> int:
    # Elsewhere: the project's own configuration leaves the generated folder out.
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        if "--check" in sys.argv:
            return subprocess.run(["diff", "-ru", "-x", "__pycache__", TARGET, folder], check=False).returncode
        shutil.rmtree(TARGET, ignore_errors=True)
        shutil.copytree(folder, TARGET)
        return 0


if __name__ == "__main__":
    sys.exit(main())
