"""Python code, parsed and never run: its syntax errors, its imports, and untrusted data that reaches dangerous calls.

Standard library and relative imports only: this package is also copied into the worker and run by the interpreter of
the apps, where its version differs from the service's. Data flow is judged name by name within a function and its
module, without regard to the order of statements: a tripwire, not a proof.
"""

from __future__ import annotations

import ast
import json
import sys
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from .rules import Rules

#: Recursion limit: a person writes no expression that is nested deeper.
MAX_DEPTH = 20_000

FileFacts = dict[str, Any]


def analyse(source: bytes, path: str, paths: Collection[str]) -> FileFacts:
    """``{"hits": [[rule, line]], "modules", "paths", "folders", "anything", "strings": [[line, text]]}``.

    Or ``{"error": why, "line": n, "kind": "syntax" | "unparsable"}``. ``paths`` are those of the whole bundle.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = compile(source, path, "exec", ast.PyCF_ONLY_AST, dont_inherit=True)
        assert isinstance(tree, ast.Module)
        return Rules(tree, path, paths).seen()
    except SyntaxError as error:
        kind = "unparsable" if "too many nested" in str(error) or "too complex" in str(error) else "syntax"
        return {"error": str(error.msg)[:300], "line": error.lineno or 0, "kind": kind}
    except (RecursionError, MemoryError):
        return {"error": "it is nested too deep to be read", "line": 0, "kind": "unparsable"}
    except ValueError as error:
        return {"error": str(error)[:300], "line": 0, "kind": "unparsable"}


def analyse_all(sources: Mapping[str, bytes], paths: Sequence[str]) -> dict[str, FileFacts]:
    """Return path → facts for these sources."""
    sys.setrecursionlimit(MAX_DEPTH)
    return {path: analyse(source, path, paths) for path, source in sources.items()}


def main() -> None:
    """Analyse ``<folder>/<number>`` for each named file; the names come as ``[[path, number], …]`` and all paths."""
    folder, names = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    sources = {path: (folder / str(number)).read_bytes() for path, number in names["files"]}
    sys.stdout.write(json.dumps(analyse_all(sources, names["paths"])))
