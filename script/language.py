"""Checks of the project's language that a program can make: docstring openings and the form of log lines.

A docstring begins with a verb or a noun and stands alone. A log line is one searchable event, all lower case at its
start, with its values as ``key=value`` after the words: ``idle check failed builder=%s``.

    python3 script/language.py
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "builderd"
#: Migrations that have landed are never changed.
LANDED = "adapters/stores/sql/migrations/versions"
FORBIDDEN = re.compile(
    r"(the same|what|whatever|whether|of|who|whoever|whose|whom|which|how|where|wherever|when|why)\b", re.IGNORECASE
)
LOGGERS = {"log", "logger"}
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
#: Words first; each value stands behind its key.
EVENT = re.compile(r"[a-zA-Z][^%=]*( \w+=%[\w.]+)*")


def main() -> int:
    faults = [
        fault
        for path in sorted(SOURCE.rglob("*.py"))
        if not str(path.relative_to(SOURCE)).startswith(LANDED)
        for fault in faults_of(path)
    ]
    sys.stdout.writelines(f"{fault}\n" for fault in faults)
    return 1 if faults else 0


def faults_of(path: Path) -> Iterator[str]:
    """Yield one line for each fault in a file."""
    where = path.relative_to(SOURCE.parents[1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node) or ""
            if FORBIDDEN.match(docstring):
                line = 1 if isinstance(node, ast.Module) else node.body[0].lineno
                yield f"{where}:{line}: docstring begins with {docstring.split()[0]!r}: begin with a verb or a noun"
        message = _message_of(node)
        if message is not None and not EVENT.fullmatch(message):
            yield f"{where}:{getattr(node, 'lineno', 0)}: log line {message!r}: write 'what happened key=%s'"


def _message_of(node: ast.AST) -> str | None:
    """Return the text of a call such as ``log.warning("…")``, "" where it is no literal, None for other nodes."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS):
        return None
    if not (isinstance(node.func.value, ast.Name) and node.func.value.id in LOGGERS and node.args):
        return None
    first = node.args[0]
    return first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else ""


if __name__ == "__main__":
    sys.exit(main())
