"""Run a framework's own generator, at a pinned version, and return what it wrote."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tests.acceptance.zoo.app import Files

#: Folders that a generator or a build makes and that nobody sends.
LEFT_OUT = {"node_modules", ".git", "__pycache__", ".next", ".svelte-kit"}


@cache
def from_python(package: str, command: str) -> Files:
    """Return the files that a command of a Python package writes into an empty folder."""
    uv = str(Path(sys.executable).with_name("uv"))
    return _generated((uv, "tool", "run", "-p", sys.executable, "--from", package, *command.split()), "")


@cache
def from_npm(package: str, words: str, folder: str = "made") -> Files:
    """Return the files that a generator from npm writes into the folder of this name."""
    return _generated(("npx", "-y", package, *words.split()), folder)


def _generated(command: Sequence[str], below: str) -> Files:
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "CI": "1", "npm_config_yes": "true", "NO_COLOR": "1"}
        subprocess.run(
            command, cwd=folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=600
        )
        return files_of(Path(folder, below))


def files_of(root: Path) -> Files:
    """Return the content of a folder as the create request has it."""
    found: dict[str, Any] = {}
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        if path.is_file() and not LEFT_OUT & set(relative.parts):
            found[str(relative)] = _content(path)
    return found


def _content(path: Path) -> Any:
    try:
        return path.read_text()
    except UnicodeDecodeError:
        return {"content": base64.b64encode(path.read_bytes()).decode(), "encoding": "base64"}
