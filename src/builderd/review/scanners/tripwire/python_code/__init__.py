"""Python code, parsed and never run: its syntax errors, its imports, and untrusted data that reaches dangerous calls.

Data flow is judged name by name, without regard to the order of statements: a tripwire, not a proof.
"""

from __future__ import annotations

import ast
import re
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from .evaluation import PASSES
from .flow_rules import follow

#: Recursion limit: a person writes no expression that is nested deeper.
MAX_DEPTH = 20_000

#: Bytes of further files that name a source or a sink, each of which is followed alone, and passes over each.
MAX_ALONE, PASSES_ALONE = 2_000_000, 2
#: Bytes of code whose flow is followed together; of more code than ``LARGE`` a third, since the others take time too.
MAX_FOLLOWED, LARGE = 300_000, 3_000_000
#: Words of sources and sinks that few files of a sound app contain.
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


def analyse_all(sources: Mapping[str, bytes], paths: Collection[str]) -> dict[str, FileFacts]:
    """Return path → facts: ``{"hits": [[rule, line, trace]], "commands": [[line, text]], "strings": [[line, text]],
    "modules", "paths", "folders", "anything"}``.

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
            facts[path], together[path] = {**read_references(tree, paths), "hits": [], "commands": []}, tree
        else:
            facts[path] = {**read_references(tree, paths), "hits": [], "commands": []}
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
        facts[path]["commands"].append([line, text])


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
    limit = most if sum(map(len, sources.values())) <= LARGE else most // 3
    total, followed = 0, []
    for path in sorted(sources, key=lambda path: (NAMED.search(sources[path]) is None, len(sources[path]), path)):
        total += len(sources[path])
        if total > limit:
            break
        followed.append(path)
    return followed


# References

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
    # Code that names ``sys.path``.
    owners = [node.value for node in nodes if isinstance(node, ast.Attribute) and node.attr == "path"]
    changes_path = any(isinstance(owner, ast.Name) and owner.id == "sys" for owner in owners)
    return {
        "modules": sorted(modules - {""}),
        "paths": sorted(path for path in known if path.rpartition("/")[2] in named),
        "folders": sorted(folders & {text.strip("./") for text in texts}) if changes_path else [],
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
