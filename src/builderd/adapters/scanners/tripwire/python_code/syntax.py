"""Questions about single AST nodes. Pure."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from .names import INTERPRETERS

#: Nodes with nothing in them that is of interest; more than half of a tree.
_PLAIN = frozenset(
    one
    for kind in (ast.expr_context, ast.operator, ast.unaryop, ast.boolop, ast.cmpop)
    for one in (kind, *kind.__subclasses__())
)


def parts(node: ast.AST) -> list[ast.AST]:
    """Return the nodes directly in this one, as ``ast.iter_child_nodes`` at a third of its time; operators left out."""
    found: list[ast.AST] = []
    for name in node._fields:
        value = getattr(node, name, None)
        if isinstance(value, ast.AST):
            if type(value) not in _PLAIN:
                found.append(value)
        elif isinstance(value, list):
            found.extend([one for one in value if isinstance(one, ast.AST) and type(one) not in _PLAIN])
    return found


def children(node: ast.AST) -> Iterator[ast.expr]:
    for child in parts(node):
        if isinstance(child, ast.expr):
            yield child
        elif isinstance(child, ast.keyword):
            yield child.value


def is_backwards(part: ast.Slice) -> bool:
    step = part.step
    return isinstance(step, ast.UnaryOp) and isinstance(step.op, ast.USub)


def is_request(name: str) -> bool:
    last = name.rpartition(".")[2]
    return last in ("request", "req", "flask_request") or name.endswith(".request")


def joins_numbers(call: ast.Call) -> bool:
    """``"".join(map(chr, …))`` and ``"".join(chr(n) for n in …)``."""
    inside = [node for argument in call.args for node in ast.walk(argument)]
    return any(isinstance(node, ast.Name) and node.id == "chr" for node in inside)


def is_namespace(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("globals", "locals", "vars")
    )


def is_built(node: ast.expr) -> bool:
    """Text put together from parts, of which not all are plain text."""
    match node:
        case ast.JoinedStr():
            return any(isinstance(value, ast.FormattedValue) for value in node.values)
        case ast.BinOp(op=ast.Add() | ast.Mod()):
            text = [part for part in ast.walk(node) if isinstance(part, ast.Constant | ast.JoinedStr)]
            return bool(text) and any(isinstance(part, ast.Name | ast.Call) for part in ast.walk(node))
        case ast.Call(func=ast.Attribute(attr="format", value=ast.Constant())):
            return True
    return False


def starts_interpreter(command: ast.expr) -> bool:
    if not isinstance(command, ast.List | ast.Tuple) or not command.elts:
        return False
    first = command.elts[0]
    name = first.value.rpartition("/")[2] if isinstance(first, ast.Constant) and isinstance(first.value, str) else ""
    return name in INTERPRETERS or (isinstance(first, ast.Attribute) and first.attr == "executable")
