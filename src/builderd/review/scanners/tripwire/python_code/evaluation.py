"""Evaluation of expressions: constants, names and kinds of data of each, from the values of names."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from typing import Any

from . import places
from .program import DEFAULT, Program, Scope, read_program
from .values import (
    MAX_NAMES,
    MAX_SHIFT,
    NOTHING,
    UNKNOWN,
    Constant,
    Value,
    added,
    carried,
    constant,
    item_at,
    joined,
    merge,
    operate,
    tainted,
)

#: Passes over all assignments; evaluations of an expression for single items of a list.
PASSES, MAX_STEPS = 5, 20_000
#: Calls within calls that are evaluated for their own arguments.
MAX_DEPTH = 8
#: Longest dotted name that is followed; names that refer to something of the bundle.
MAX_NAME = 100
REFERENCES = ("file:", "class:", "opened:")
PREFIXES = ("builtins.", "__builtins__.", "globalThis.", "window.", "global.")
NAMESPACES = ("globals()", "locals()", "vars()", "__builtins__", "builtins")
PASSED = (*places.SAME, "util.promisify", "functools.partial", "path.toNamespacedPath")


def normal(name: str) -> str:
    """Return a dotted name without what leads to the same thing."""
    name = name.replace(".__dict__", "").replace(".default.", ".").removesuffix(".default")
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name if name == "subprocess.call" else name.removesuffix(".call").removesuffix(".apply")


class Evaluation:
    """Evaluates the expressions of all files."""

    def __init__(self, trees: Mapping[str, ast.Module]) -> None:
        self._program: Program = read_program(trees)
        self._files: dict[str, Value] = {}
        self._hidden: set[tuple[str, int]] = set()
        self._steps = self._depth = 0
        self._changed: set[str] = set()
        self._paths = trees.keys()
        self._evaluators: dict[type, Callable[[Scope, Any], Value]] = {
            ast.Constant: lambda _, node: Value((node.value,)) if type(node.value) in (str, bytes, int) else NOTHING,
            ast.Name: self._name,
            ast.Attribute: self._attribute,
            ast.Subscript: self._subscript,
            ast.Call: self._call,
            ast.BinOp: self._binary,
            ast.JoinedStr: self._joined,
            ast.FormattedValue: lambda scope, node: self.of(scope, node.value),
            ast.List: self._sequence,
            ast.Tuple: self._sequence,
            ast.Set: self._sequence,
            ast.ListComp: self._comprehension,
            ast.GeneratorExp: self._comprehension,
            ast.SetComp: self._comprehension,
            ast.Dict: self._dict,
            ast.Await: lambda scope, node: self.of(scope, node.value),
            ast.Starred: lambda scope, node: self.of(scope, node.value),
            ast.NamedExpr: lambda scope, node: self.of(scope, node.value),
            ast.IfExp: lambda scope, node: merge(self.of(scope, node.body), self.of(scope, node.orelse)),
            ast.BoolOp: lambda scope, node: merge(*(self.of(scope, one) for one in node.values)),
            ast.Lambda: self._function,
            ast.FunctionDef: self._function,
            ast.AsyncFunctionDef: self._function,
            ast.Compare: lambda scope, node: NOTHING,
        }

    def of(self, scope: Scope, node: ast.AST | None) -> Value:
        if node is None:
            return NOTHING
        memo = scope.memo
        known = memo.get(id(node))
        if known is None:
            memo[id(node)] = NOTHING
            evaluate = self._evaluators.get(type(node))
            known = evaluate(scope, node) if evaluate else self._parts(scope, node)
            memo[id(node)] = known
        return known

    def _call(self, scope: Scope, call: ast.Call) -> Value:
        """Return a call's result."""
        raise NotImplementedError

    def _parts(self, scope: Scope, node: ast.AST) -> Value:
        return merge(*(carried(self.of(scope, child)) for child in ast.iter_child_nodes(node)))

    def _name(self, scope: Scope, node: ast.Name) -> Value:
        found = scope.get(node.id)
        if found is not None:
            return found
        return Value(names=(node.id,)) if node.id not in ("self", "this", "cls") else NOTHING

    def _attribute(self, scope: Scope, node: ast.Attribute) -> Value:
        owner = self.of(scope, node.value)
        stored = scope.top.names.get(dotted(node), NOTHING)
        consts = owner.consts if node.attr in ("name", "path") else ()
        kinds = [places.KEY] if self._program.is_key(scope.path, node.attr) else []
        if node.attr in places.REQUEST_PARTS and is_request(node.value, owner):
            kinds.append(places.REQUEST)
        own = merge(*(tainted(kind, scope.path, node.lineno) for kind in kinds))
        return merge(self._member_of(scope, owner, node.attr, node), stored, Value(consts), own)

    def _member_of(self, scope: Scope, owner: Value, name: str, node: ast.expr) -> Value:
        names, files = [], []
        for one in owner.names:
            if one.startswith("file:"):
                files.append(self._of_file(one[5:], name))
            elif len(one) < MAX_NAME and not one.startswith(REFERENCES):
                names.append(normal(f"{one}.{name}"))
        method = self._program.methods.get(name)
        functions = (method,) if method is not None and name not in places.COMMON_METHODS else ()
        kinds = carried(owner, places.ENVIRONMENT)
        if any(one in places.ENVIRONMENTS for one in names):
            kinds = merge(kinds, tainted(places.ENVIRONMENT, scope.path, node.lineno))
        home = constant("~") if places.ENVIRONMENT in (owner.kinds or {}) and name in places.HOMES else NOTHING
        return merge(Value(names=tuple(names[:MAX_NAMES]), functions=functions), kinds, home, *files)

    def _of_file(self, path: str, name: str | None) -> Value:
        top = self._program.tops[path]
        if name is None:
            return top.names.get(DEFAULT, NOTHING)
        found = top.names.get(name)
        return found if found is not None else carried(top.names.get(DEFAULT, NOTHING))

    def _subscript(self, scope: Scope, node: ast.Subscript) -> Value:
        owner, at = self.of(scope, node.value), node.slice
        if isinstance(at, ast.Slice):
            backwards = isinstance(at.step, ast.UnaryOp) and isinstance(node.value, ast.Constant)
            own = tainted(places.DECODED, scope.path, node.lineno) if backwards else NOTHING
            part = slice(*(self._number(scope, one) for one in (at.lower, at.upper, at.step)))
            parts = [item_at(one, part) for one in owner.consts if isinstance(one, str | bytes | tuple)]
            return merge(constant(*(one for one in parts if one is not None), built=True), carried(owner), own)
        key = self.of(scope, at)
        found: list[Constant] = []
        for const in owner.consts:
            if isinstance(const, tuple | str | bytes) and key.consts:
                found += [item for k in key.consts if (item := item_at(const, k)) is not None]
            elif isinstance(const, tuple):
                found += const
        if not found and key.consts and isinstance(key.consts[0], str):
            found += owner.consts
        named = merge(*(self._named(scope, owner, one, key.built, node) for one in key.texts[:MAX_NAMES]))
        items = Value(tuple(found[:MAX_SHIFT]), functions=owner.functions, built=bool(found))
        return merge(items, named, carried(owner, places.ENVIRONMENT))

    def _number(self, scope: Scope, node: ast.expr | None) -> int | None:
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            inner = self._number(scope, node.operand)
            return None if inner is None else -inner
        consts = self.of(scope, node).consts
        return consts[0] if consts and isinstance(consts[0], int) else None

    def _named(self, scope: Scope, owner: Value, name: str, built: bool, node: ast.expr) -> Value:
        """Return the member that a text names; one that hides a dangerous name is noted."""
        if UNKNOWN in name or not name.isidentifier():
            return NOTHING
        if any(one in NAMESPACES for one in owner.names):
            found = scope.get(name) or Value(names=(normal(name),))
        else:
            found = self._member_of(scope, owner, name, node)
        if built and any(one in places.DANGEROUS for one in found.names):
            self._hidden.add((scope.path, node.lineno))
        return found

    def _binary(self, scope: Scope, node: ast.BinOp) -> Value:
        left, right = self.of(scope, node.left), self.of(scope, node.right)
        kinds = merge(carried(left), carried(right))
        if isinstance(node.op, ast.Add):
            return merge(added(left, right), kinds)
        if isinstance(node.op, ast.Div):
            return merge(joined([left, right], "/"), kinds)
        if isinstance(node.op, ast.Mod) and any(isinstance(one, str) for one in left.consts):
            return merge(self._formatted(scope, left, node.right, right), kinds)
        found = [operate(type(node.op), one, other) for one in left.consts for other in right.consts]
        return merge(constant(*(one for one in found if one is not None), built=True), kinds)

    def _formatted(self, scope: Scope, left: Value, node: ast.expr, right: Value) -> Value:
        given = [self.of(scope, one) for one in node.elts] if isinstance(node, ast.Tuple) else [right]
        found = []
        for text in left.texts:
            pieces = text.replace("%d", "%s").replace("%r", "%s").split("%s")
            filled: list[Value] = []
            for number, piece in enumerate(pieces):
                filled.append(constant(piece))
                if number < len(pieces) - 1:
                    filled.append(given[number] if number < len(given) else NOTHING)
            found.append(joined(filled))
        return merge(*found)

    def _joined(self, scope: Scope, node: ast.JoinedStr) -> Value:
        parts = [self.of(scope, one) for one in node.values]
        return merge(joined(parts), *map(carried, parts))

    def _sequence(self, scope: Scope, node: ast.List | ast.Tuple | ast.Set) -> Value:
        parts = [self.of(scope, one) for one in node.elts]
        whole = tuple(part.consts[0] for part in parts if part.consts)
        functions = tuple(key for part in parts for key in part.functions)[:MAX_NAMES]
        exact = len(whole) == len(parts) and parts
        const = (whole,) if exact or whole else ()
        return merge(Value(const, functions=functions), *map(carried, parts))

    def _dict(self, scope: Scope, node: ast.Dict) -> Value:
        parts = [sent_part(key, self.of(scope, one)) for key, one in zip(node.keys, node.values, strict=True)]
        spread = [value for key, value in zip(node.keys, parts, strict=True) if key is None]
        return merge(*parts, *spread, *(carried(self.of(scope, key)) for key in node.keys if key is not None))

    def _function(self, scope: Scope, node: ast.expr) -> Value:
        key = self._program.keys.get(id(node))
        return NOTHING if key is None else Value(functions=(key,))

    def _comprehension(self, scope: Scope, node: ast.ListComp | ast.GeneratorExp | ast.SetComp) -> Value:
        first = node.generators[0]
        source = self.of(scope, first.iter)
        kinds = merge(carried(source), carried(self.of(scope, node.elt)))
        if len(node.generators) > 1 or first.ifs or not isinstance(first.target, ast.Name):
            return kinds
        name, elt = first.target.id, node.elt
        return merge(self._each(source, lambda item: self._with(scope, {name: item}, elt)), kinds)

    def _each(self, source: Value, apply: Callable[[Constant], Value]) -> Value:
        """Return the lists that a function makes from constant lists, item by item."""
        made = []
        for const in source.consts:
            items = const if isinstance(const, tuple | str | bytes) else ()
            self._steps += len(items)
            if not items or self._steps > MAX_STEPS:
                continue
            found = [apply(item).consts for item in items]
            if all(found):
                made.append(tuple(one[0] for one in found))
        return constant(*made, built=True)

    def _with(self, scope: Scope, given: Mapping[str, Constant], node: ast.expr) -> Value:
        """Evaluate with other values of these names."""
        memo, names = scope.memo, scope.names
        scope.memo, scope.names = {}, {**names, **{name: constant(item) for name, item in given.items()}}
        try:
            return self.of(scope, node)
        finally:
            scope.memo, scope.names = memo, names


def is_request(node: ast.expr, value: Value) -> bool:
    """Return True for a web framework's request, by its own name or the one that it was imported under."""
    name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
    return name in places.REQUESTS or any(one.rpartition(".")[2] in places.REQUESTS for one in value.names)


def sent_part(key: ast.expr | None, value: Value) -> Value:
    """Return the value of a field without the key of a connection, or the credential of a call."""
    is_own = isinstance(key, ast.Constant) and isinstance(key.value, str) and key.value.lower() in places.KEY_FIELDS
    if not is_own or not value.has(places.KEY):
        return value
    return merge(Value(value.consts, value.names, value.functions, None, value.built), carried(value, places.KEY))


def item_of(value: Value) -> Value:
    """Return an item of the iterated value."""
    items = [item for const in value.consts if isinstance(const, tuple) for item in const]
    return merge(Value(tuple(items[:64]), functions=value.functions), carried(value)) if items else _plain(value)


def _plain(value: Value) -> Value:
    return merge(Value(functions=value.functions), carried(value))


def member_of(value: Value, number: int) -> Value:
    found = [item_at(const, number) for const in value.consts if isinstance(const, tuple)]
    return merge(Value(tuple(one for one in found if one is not None)), _plain(value))


def dotted(node: ast.Attribute) -> str:
    owner = node.value
    if isinstance(owner, ast.Name):
        return f"{owner.id}.{node.attr}"
    return f"{dotted(owner)}.{node.attr}" if isinstance(owner, ast.Attribute) else f".{node.attr}"
