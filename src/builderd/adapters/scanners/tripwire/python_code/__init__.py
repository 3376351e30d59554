"""Python code, parsed and never run: its syntax errors, its imports, and untrusted data that reaches dangerous calls.

Standard library and relative imports only: this package is also copied into the worker and run by the interpreter of
the apps, where its version differs from the service's. Data flow is judged name by name, without regard to the order of
statements: a tripwire, not a proof.
"""

from __future__ import annotations

import ast
import json
import re
import sys
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from .evaluation import PASSES
from .flow_rules import follow
from .references import read_references

#: Recursion limit: a person writes no expression that is nested deeper.
MAX_DEPTH = 20_000

#: Bytes of further files that name a source or a sink, each of which is followed alone, and passes over each.
MAX_ALONE, PASSES_ALONE = 2_000_000, 2
#: Bytes of code whose flow is followed together; of more code than ``LARGE`` a third, since the others take time too.
MAX_FOLLOWED, LARGE = 300_000, 3_000_000
#: Words of sources and sinks that few files of a sound app hold.
NAMED = re.compile(
    rb"\bexec\b|\beval\b|__import__|getattr|pickle|marshal|base64|atob|fromCharCode|\.ssh|id_rsa|\.aws|\.npmrc|\.netrc"
    rb"|[Ww]allet|gethostbyname|dns|expanduser|homedir|Path\.home|child_process|subprocess|os\.system|popen|pynput"
    rb"|keyboard|clip|urlretrieve|webhook|api\.telegram|\bFunction\b|chmod|/etc/|environ\b|process\.env\b|Login Data"
    rb"|leveldb|dup2|os\.fork|rmtree|render_template_string|from_string"
)

#: Syntax by the first Python that reads it: template strings; several exceptions without parentheses; lazy imports.
NEWER = {
    (3, 14): re.compile(
        r"""(?:^|[^\w.])(?:[tT][rR]?|[rR][tT])["']|^\s*except\*?\s+[\w.]+\s*,\s*[\w.]+\s*:""",
    ),
    (3, 15): re.compile(r"^\s*lazy\s+(?:import|from)\s"),
}

FileFacts = dict[str, Any]


def analyse(source: bytes, path: str, paths: Collection[str]) -> FileFacts:
    """Return the facts of one file, as ``analyse_all`` does."""
    return analyse_all({path: source}, paths)[path]


def analyse_all(sources: Mapping[str, bytes], paths: Collection[str]) -> dict[str, FileFacts]:
    """Return path → facts: ``{"hits": [[rule, line, trace]], "modules", "paths", "folders", "anything", "strings":
    [[line, text]]}``.

    Or ``{"error": why, "line": n, "kind": "syntax" | "unparsable"}``. ``paths`` are those of the whole bundle.
    """
    sys.setrecursionlimit(MAX_DEPTH)
    facts: dict[str, FileFacts] = {}
    # Trees take 50 times the memory of their code: those that are not followed together are followed alone, and let go.
    together: dict[str, ast.Module] = {}
    followed = frozenset(followed_files(sources))
    others = {path: source for path, source in sources.items() if path not in followed and NAMED.search(source)}
    alone = frozenset(followed_files(others, MAX_ALONE))
    for path, source in sources.items():
        tree = _parse(source, path)
        if not isinstance(tree, ast.Module):
            facts[path] = tree
        elif path in followed:
            facts[path], together[path] = {**read_references(tree, paths), "hits": []}, tree
        else:
            facts[path] = {**read_references(tree, paths), "hits": []}
            if path in alone:
                _follow({path: tree}, facts, PASSES_ALONE)
    _follow(together, facts, PASSES)
    return facts


def _follow(trees: Mapping[str, ast.Module], facts: dict[str, FileFacts], passes: int) -> None:
    try:
        flows = follow(trees, passes)
    except (RecursionError, MemoryError):
        facts.update(dict.fromkeys(trees, _TOO_DEEP))
        return
    for hit in flows.hits:
        facts[hit.path]["hits"].append([hit.rule, hit.line, hit.trace])
    for path, line, text in flows.commands:
        facts[path]["strings"].append([line, text])


_TOO_DEEP: FileFacts = {"error": "it is nested too deep to be read", "line": 0, "kind": "unparsable"}


def _parse(source: bytes, path: str) -> ast.Module | FileFacts:
    """Return the tree, or why there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = compile(source, path, "exec", ast.PyCF_ONLY_AST, dont_inherit=True)
    except SyntaxError as error:
        kind = "unparsable" if "too many nested" in str(error) or "too complex" in str(error) else "syntax"
        reason = f"{str(error.msg)[:300]}{_newer(source, error.lineno or 0)}"
        return {"error": reason, "line": error.lineno or 0, "kind": kind}
    except (RecursionError, MemoryError):
        return _TOO_DEEP
    except ValueError as error:
        return {"error": str(error)[:300], "line": 0, "kind": "unparsable"}
    assert isinstance(tree, ast.Module)
    return tree


def _newer(source: bytes, line: int) -> str:
    """Return a note where the line is written for a newer Python than this one."""
    lines = source.decode("utf-8", errors="replace").split("\n")
    text = lines[line - 1] if 0 < line <= len(lines) else ""
    mine = sys.version_info[:2]
    for version, pattern in NEWER.items():
        if mine < version and pattern.search(text):
            note = f". Python {version[0]}.{version[1]} reads this; apps run on Python {mine[0]}.{mine[1]} here"
            return f"{note}: write it for Python {mine[0]}.{mine[1]}"
    return ""


def followed_files(sources: Mapping[str, bytes], most: int = MAX_FOLLOWED) -> list[str]:
    """Return the files whose flow is followed. In a large bundle: those that name a source or a sink, smallest first,
    up to a sum of bytes, so that the time is bounded."""
    limit = most if _size(sources) <= LARGE else most // 3
    total, followed = 0, []
    for path in sorted(sources, key=lambda path: (NAMED.search(sources[path]) is None, len(sources[path]), path)):
        total += len(sources[path])
        if total > limit:
            break
        followed.append(path)
    return followed


def _size(sources: Mapping[str, bytes]) -> int:
    return sum(map(len, sources.values()))


def main() -> None:
    """Analyse ``<folder>/<number>`` for each named file; the names come as ``[[path, number], …]`` and all paths."""
    folder, names = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    sources = {path: (folder / str(number)).read_bytes() for path, number in names["files"]}
    sys.stdout.write(json.dumps(analyse_all(sources, names["paths"])))
