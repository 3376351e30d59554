"""Imports and strings of one file: which other files of the bundle it may run or read, and texts for the patterns."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Sequence
from typing import Any

#: Strings of more characters name no file.
MAX_PATH = 300
_IMPORTERS = ("__import__", "import_module")


def read_references(tree: ast.Module, paths: Collection[str]) -> dict[str, Any]:
    """Return ``{"modules", "paths", "folders", "anything", "strings": [[line, text]]}``.

    ``paths`` of the result are files that a string names, ``folders`` those that may be added to ``sys.path``.
    ``anything``: a module is imported by a name that is computed.
    """
    nodes = list(ast.walk(tree))
    strings = [(line, text) for line, text in _strings(nodes) if len(text) > 1]
    texts = {text for _, text in strings}
    basenames, known = {path.rpartition("/")[2] for path in paths}, set(paths)
    named = {
        text.rpartition("/")[2]
        for text in texts
        if len(text) < MAX_PATH and (text in basenames or text.removeprefix("./").removeprefix("/app/") in known)
    }
    folders = {path.rpartition("/")[0] for path in paths} - {""}
    modules = {*_imported(nodes)}
    return {
        "modules": sorted(modules - {""}),
        "paths": sorted(path for path in known if path.rpartition("/")[2] in named),
        "folders": sorted(folders & {text.strip("./") for text in texts}) if _changes_path(nodes) else [],
        "anything": "" in modules,
        "strings": strings,
    }


def _strings(nodes: Sequence[ast.AST]) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of all texts but docstrings, with ``{}`` for what is put into one."""
    seen: set[int] = set()
    for node in nodes:
        match node:
            case ast.Module() | ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                if node.body and isinstance(first := node.body[0], ast.Expr):
                    seen.add(id(first.value))
            case ast.JoinedStr():
                yield node.lineno, "".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values)
                seen |= {id(value) for value in node.values}
            case ast.Constant(value=str() as text) if id(node) not in seen:
                yield node.lineno, text
            case ast.Constant(value=bytes() as content):
                yield node.lineno, content.decode("latin-1")


def _imported(nodes: Sequence[ast.AST]) -> Iterator[str]:
    """Yield the dotted names of imports, with a dot for each level of a relative one, "" for one that is computed."""
    for node in nodes:
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom():
                origin = "." * node.level + (node.module or "")
                yield origin
                yield from (f"{origin.removesuffix('.')}.{alias.name}" for alias in node.names)
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[first, *_]) if name in _IMPORTERS:
                yield first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else ""


def _changes_path(nodes: Sequence[ast.AST]) -> bool:
    return any(isinstance(node, ast.Attribute) and node.attr == "path" and _is_sys(node.value) for node in nodes)


def _is_sys(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "sys"
