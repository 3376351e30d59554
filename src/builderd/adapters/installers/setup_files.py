"""Strict reader of ``setup.py`` and ``setup.cfg``, which are hostile input: neither is run.

``install_requires`` is read from the syntax tree of ``setup.py``: a list or tuple of texts, or a name that one is
assigned to.

Formats: https://setuptools.pypa.io/en/latest/userguide/dependency_management.html and
https://setuptools.pypa.io/en/latest/userguide/declarative_config.html.
"""

from __future__ import annotations

import ast
import configparser
import re
from collections.abc import Sequence
from typing import Any

from builderd.adapters.installers.requirements import MAX_QUOTED, Requirements, collect, read_text
from builderd.domain.bundles import Bundle
from builderd.domain.errors import InstallFailed

SETUP_PY, SETUP_CFG = "setup.py", "setup.cfg"
#: Much more than such files have.
MAX_BYTES = 100_000
KEY = "install_requires"
CURE = "list them in requirements.txt"
#: configparser takes time in the square of the number of lines that it cannot read: 0.05 s for these.
MAX_CFG_LINES = 5_000
#: Two blanks or more behind a text of the same line; configparser takes time in the square of their number.
_RUN = re.compile(r"(?<=\S)([^\S\n])[^\S\n]+")


def read_setup(bundle: Bundle) -> Requirements | None:
    """Return the ``install_requires`` of ``setup.py``, else of ``setup.cfg``; None without any.

    Raises ``InstallFailed`` with the file and the reason, also where only running ``setup.py`` would tell.
    """
    for path, read in ((SETUP_PY, _of_setup_py), (SETUP_CFG, _of_setup_cfg)):
        text = read_text(bundle, path, MAX_BYTES)
        if found := read(text) if text else []:
            return collect(path, [(KEY, one) for one in found])
    return None


def _of_setup_cfg(text: str) -> list[str]:
    if (lines := text.count("\n")) > MAX_CFG_LINES:
        raise InstallFailed(f"{SETUP_CFG} has {lines} lines: at most {MAX_CFG_LINES} are read; {CURE}.")
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read_string(_RUN.sub(r"\1", text))
    except configparser.Error as error:
        reason = " ".join(str(error)[:MAX_QUOTED].split())
        raise InstallFailed(f"{SETUP_CFG} is not readable: {reason}.") from None
    value = parser.get("options", KEY, fallback="").strip()
    if value.startswith(("file:", "attr:")):
        raise _computed(SETUP_CFG, value.split("\n")[0][:MAX_QUOTED])
    parts = (part.strip() for line in value.splitlines() for part in line.split(" #")[0].split(";;"))
    return [part for part in parts if part and not part.startswith("#")]


def _of_setup_py(text: str) -> list[str]:
    if KEY not in text:
        return []
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InstallFailed(f"{SETUP_PY} is not Python: {str(error)[:MAX_QUOTED]}.") from None
    nodes = list(ast.walk(tree))
    given = [one.value for node in nodes if isinstance(node, ast.Call) for one in node.keywords if one.arg == KEY]
    if not given and _values(tree, KEY):
        given = [ast.Name(KEY)]  # handed on by ``setup(**locals())``
    if not given and not any(KEY in _words(node) for node in nodes):
        return []  # a comment or a text about it
    if len(given) != 1:
        raise _computed(SETUP_PY, f"it is given {len(given)} times")
    value = given[0]
    if isinstance(value, ast.Name):
        value = _assigned(tree, nodes, value.id)
    if not isinstance(value, ast.List | ast.Tuple):
        raise _computed(SETUP_PY, f"its value in line {value.lineno} is no list")
    texts = [one.value for one in value.elts if isinstance(one, ast.Constant) and isinstance(one.value, str)]
    if len(texts) < len(value.elts):
        raise _computed(SETUP_PY, f"its list in line {value.lineno} has more than texts")
    return texts


def _values(tree: ast.Module, name: str) -> list[ast.expr]:
    """Return what statements at the top of the file assign to the name."""
    found = []
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=target)]) if target == name:
                found.append(node.value)
    return found


def _assigned(tree: ast.Module, nodes: Sequence[ast.AST], name: str) -> ast.expr:
    """Return the value that the file assigns to the name, once. Raises ``InstallFailed`` if it may have another one."""
    values, stores = _values(tree, name), 0
    if len(values) != 1:
        raise _computed(SETUP_PY, f"{name} is assigned {len(values)} times")
    for node in nodes:
        match node:
            case ast.Name(id=found, ctx=ast.Store() | ast.Del()) if found == name and stores == 0:
                stores = 1  # this is the assignment at the top
            case (
                ast.Name(id=found, ctx=ast.Store() | ast.Del())
                | ast.Attribute(value=ast.Name(id=found))
                | ast.Subscript(value=ast.Name(id=found))
                | ast.FunctionDef(name=found)
                | ast.AsyncFunctionDef(name=found)
                | ast.ClassDef(name=found)
                | ast.alias(asname=str(found))
                | ast.alias(name=found, asname=None)
            ) if found == name:
                raise _computed(SETUP_PY, f"{name} is changed in line {node.lineno}")
    return values[0]


def _words(node: ast.AST) -> list[Any]:
    return [getattr(node, field, None) for field in ("id", "arg", "attr", "value")]


def _computed(path: str, why: str) -> InstallFailed:
    return InstallFailed(
        f"{path}: {KEY} is not a plain list of texts ({why}), and builderd does not run {path}: {CURE}."
    )
