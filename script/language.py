"""Checks of the project's language that a program can make: docstring openings, log lines, riddles.

A docstring begins with a verb or a noun and stands alone. A log line is one searchable event, all lower case at its
start, with its values as ``key=value`` after the words: ``idle check failed builder=%s``. Docstrings, comments,
messages and log lines avoid the phrases in ``RIDDLES``, which hide who does what. Of tests, docstrings and names are
checked.

    python3 script/language.py
"""

from __future__ import annotations

import ast
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE, TESTS = ROOT / "src" / "builderd", ROOT / "tests"
#: Migrations that have landed are never changed.
LANDED = "database/migrations/versions"
FORBIDDEN = re.compile(
    r"(the same|what|whatever|whether|of|who|whoever|whose|whom|which|how|where|wherever|when|why|it|its|they|those|"
    r"these|nobody|somebody|never|as|from|until|without|with|at|by|on|for|raises)\b",
    re.IGNORECASE,
)
RIDDLES = re.compile(
    r"\b(whoever|whomever|(is|are|was|were|be|been|being) told|nothing tells|as such|for a moment|of what|none of ours|"
    r"(nobody|anybody|somebody else)'s)\b",
    re.IGNORECASE,
)
#: Openings and words that hide a test's subject.
RIDDLE_NAMES = re.compile(
    r"test_(what|whatever|who|whoever|whose|one_that|of)_|"
    r"_(told|as_such|for_a_moment|of_what|whoever|somebody|anybody)(_|$)"
)
#: Parts of an f-string are tokens of their own since Python 3.12.
TEXTS = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
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
    faults += [fault for path in sorted(TESTS.rglob("*.py")) for fault in faults_of_test(path)]
    sys.stdout.writelines(f"{fault}\n" for fault in faults)
    return 1 if faults else 0


def faults_of(path: Path) -> Iterator[str]:
    """Yield one line for each fault in a file."""
    where = path.relative_to(SOURCE.parents[1])
    yield from _riddles(path, where)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node) or ""
            if FORBIDDEN.match(docstring):
                line = 1 if isinstance(node, ast.Module) else node.body[0].lineno
                yield f"{where}:{line}: docstring begins with {docstring.split()[0]!r}: begin with a verb or a noun"
        message = _message_of(node)
        if message is not None and not EVENT.fullmatch(message):
            yield f"{where}:{getattr(node, 'lineno', 0)}: log line {message!r}: write 'what happened key=%s'"


def faults_of_test(path: Path) -> Iterator[str]:
    """Yield one line for each docstring or name of a test file against the rules."""
    where = path.relative_to(ROOT)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node) or ""
            line = 1 if isinstance(node, ast.Module) else node.lineno
            if found := FORBIDDEN.match(docstring) or RIDDLES.search(" ".join(docstring.split())):
                yield f"{where}:{line}: docstring {found[0]!r}: begin with a verb or a noun, and name the subject"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and RIDDLE_NAMES.search(node.name):
            yield f"{where}:{node.lineno}: name {node.name!r}: name the subject and say what it does"


def _riddles(path: Path, where: Path) -> Iterator[str]:
    """Yield a fault for each comment, docstring or message with a phrase of ``RIDDLES``."""
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            found = RIDDLES.search(" ".join(token.string.split())) if token.type in TEXTS else None
            if found:
                yield f"{where}:{token.start[0]}: riddle {found[0]!r}: name the subject and say what it does"


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
