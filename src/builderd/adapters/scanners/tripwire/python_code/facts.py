"""Facts about one file: its imports, names and strings, and which kinds of untrusted data reach each name."""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Iterable

from .names import (
    ALL,
    CARRIERS,
    CARRYING_METHODS,
    CHAT_HANDLERS,
    CLEANERS,
    DECODED,
    DECODERS,
    ENVIRON,
    EVALUATORS,
    FETCHED,
    FETCHERS,
    HANDLERS,
    INPUTS,
    NONE,
    PROCESSES,
    RECEIVED,
    REQUEST,
    REQUEST_PARTS,
    SHELLS,
    Kinds,
)
from .syntax import children, is_backwards, is_namespace, is_request, joins_numbers, parts

#: Passes of the data flow over all assignments.
PASSES = 5


class Scope:
    """Taint kinds of names in one function; unknown names are looked up in the outer scope."""

    def __init__(self, outer: Scope | None = None) -> None:
        self.outer = outer
        self.names: dict[str, Kinds] = {}

    def get(self, name: str) -> Kinds:
        found = self.names.get(name, NONE)
        return found | self.outer.get(name) if self.outer else found

    def add(self, name: str, kinds: Kinds) -> bool:
        """Add kinds to a name. Return True if any is new."""
        known = self.names.get(name, NONE)
        if kinds <= known:
            return False
        self.names[name] = known | kinds
        return True


class Facts:
    """Imports, names, strings and data flow of one file."""

    def __init__(self, tree: ast.Module, path: str, paths: Collection[str]) -> None:
        self._tree = tree
        self._path = path
        self._paths = frozenset(paths)
        self._basenames = {one.rpartition("/")[2] for one in paths}
        self._folders = {one.rpartition("/")[0] for one in paths} - {""}
        self._aliases: dict[str, str] = {}
        self._names: dict[int, str] = {}
        self._memo: dict[int, Kinds] = {}
        self._assignments: list[tuple[Scope, ast.expr, ast.expr]] = []
        self._calls: list[tuple[Scope, ast.Call]] = []
        self._returns: list[tuple[str, Scope, ast.expr]] = []
        self._functions: dict[str, tuple[Scope, list[str]]] = {}
        self._results: dict[str, Kinds] = {}
        self._docstrings: set[int] = set()
        self._modules: set[str] = set()
        self._strings: list[tuple[int, str]] = []
        self._mentioned: set[str] = set()
        self._anything = False
        self._searches = False
        self._loops: list[ast.While] = []
        self._hits: set[tuple[str, int]] = set()

    # Collecting

    def _collect(self) -> None:
        waiting: list[tuple[ast.AST, Scope, str]] = [(self._tree, Scope(), "")]
        while waiting:
            node, scope, function = waiting.pop()
            self._note(node, scope, function)
            inner = scope
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                inner = Scope(scope)
                function = self._note_function(node, inner)
            waiting.extend([(child, inner, function) for child in parts(node)])

    def _note(self, node: ast.AST, scope: Scope, function: str) -> None:
        if (note := _NOTES.get(type(node))) is not None:
            note(self, node, scope, function)

    def _note_assign(self, node: ast.Assign, scope: Scope, _: str) -> None:
        self._assignments += [(scope, target, node.value) for target in node.targets]
        self._note_alias(node)
        self._note_lambda(node, scope)

    def _note_assigned(self, node: ast.AnnAssign | ast.AugAssign | ast.NamedExpr, scope: Scope, _: str) -> None:
        if node.value is not None:
            self._assignments.append((scope, node.target, node.value))

    def _note_loop(self, node: ast.For | ast.AsyncFor | ast.comprehension, scope: Scope, _: str) -> None:
        self._assignments.append((scope, node.target, node.iter))

    def _note_with(self, node: ast.withitem, scope: Scope, _: str) -> None:
        if node.optional_vars is not None:
            self._assignments.append((scope, node.optional_vars, node.context_expr))

    def _note_return(self, node: ast.Return | ast.Yield, scope: Scope, function: str) -> None:
        if node.value is not None:
            self._returns.append((function, scope, node.value))

    def _note_call(self, node: ast.Call, scope: Scope, _: str) -> None:
        self._calls.append((scope, node))

    def _note_while(self, node: ast.While, *_: object) -> None:
        self._loops.append(node)

    def _note_joined(self, node: ast.JoinedStr, *_: object) -> None:
        text = "".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values)
        self._note_string(node.lineno, text)
        self._docstrings |= {id(v) for v in node.values}

    def _note_constant(self, node: ast.Constant, *_: object) -> None:
        if isinstance(node.value, str):
            if id(node) not in self._docstrings:
                self._note_string(node.lineno, node.value)
        elif isinstance(node.value, bytes):
            self._note_string(node.lineno, node.value.decode("latin-1"))

    def _note_attribute(self, node: ast.Attribute, *_: object) -> None:
        if node.attr == "path" and isinstance(node.value, ast.Name) and node.value.id == "sys":
            self._searches = True

    def _note_import(self, node: ast.Import, *_: object) -> None:
        for alias in node.names:
            self._modules.add(alias.name)
            if alias.asname:
                self._aliases[alias.asname] = alias.name

    def _note_import_from(self, node: ast.ImportFrom, *_: object) -> None:
        origin = "." * node.level + (node.module or "")
        self._modules.add(origin)
        for alias in node.names:
            joined = origin + alias.name if origin.endswith(".") else f"{origin}.{alias.name}"
            self._modules.add(joined)
            if not node.level:
                self._aliases[alias.asname or alias.name] = joined

    def _note_alias(self, node: ast.Assign) -> None:
        """``e = exec`` makes another name for it."""
        if isinstance(node.value, ast.Name | ast.Attribute | ast.Call | ast.Subscript):
            name = self._name(node.value)
            if name in EVALUATORS | SHELLS | PROCESSES | DECODERS | FETCHERS | {"compile", "os.environ"}:
                for target in node.targets:
                    if isinstance(target, ast.Name):
                        self._aliases.setdefault(target.id, name)

    def _note_lambda(self, node: ast.Assign, scope: Scope) -> None:
        """``f = lambda x: …`` is a function by that name."""
        if isinstance(node.value, ast.Lambda):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            self._returns += [(name, scope, node.value.body) for name in names]

    def _note_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, inner: Scope) -> str:
        arguments = [one.arg for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        if isinstance(node, ast.Lambda):
            return ""
        self._functions[node.name] = (inner, [one for one in arguments if one not in ("self", "cls")])
        of_chat = node.name in CHAT_HANDLERS and isinstance(node, ast.AsyncFunctionDef)
        if of_chat or any(self._is_handler(decorator) for decorator in node.decorator_list):
            for argument in arguments:
                inner.add(argument, frozenset({REQUEST}))
        return node.name

    def _is_handler(self, decorator: ast.expr) -> bool:
        called = decorator.func if isinstance(decorator, ast.Call) else decorator
        return isinstance(called, ast.Attribute) and called.attr in HANDLERS

    def _note_docstring(
        self, node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, *_: object
    ) -> None:
        first = node.body[0] if node.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            self._docstrings.add(id(first.value))

    def _note_string(self, line: int, text: str) -> None:
        if len(text) < 2:
            return
        self._strings.append((line, text))
        if len(text) < 300 and (
            text in self._basenames or text.removeprefix("./").removeprefix("/app/") in self._paths
        ):
            base = text.rpartition("/")[2]
            self._mentioned |= {one for one in self._paths if one == base or one.endswith("/" + base)}

    # What flows where

    def _flow(self) -> None:
        for _ in range(PASSES):
            self._memo.clear()
            news = [
                self._assign(scope, target, self._kinds(scope, value)) for scope, target, value in self._assignments
            ]
            news += [self._result(name, self._kinds(scope, value)) for name, scope, value in self._returns if name]
            news += [self._pass_on(scope, call) for scope, call in self._calls]
            if not any(news):
                return
        self._memo.clear()

    def _assign(self, scope: Scope, target: ast.expr, kinds: Kinds) -> bool:
        if not kinds:
            return False
        match target:
            case ast.Name():
                return scope.add(target.id, kinds)
            case ast.Attribute():
                return _outermost(scope).add(self._name(target), kinds)
            case ast.Tuple() | ast.List():
                news = [self._assign(scope, part, kinds) for part in target.elts]
                return any(news)
            case ast.Starred() | ast.Subscript():
                return self._assign(scope, target.value, kinds)
        return False

    def _result(self, function: str, kinds: Kinds) -> bool:
        known = self._results.get(function, NONE)
        self._results[function] = known | kinds
        return not kinds <= known

    def _pass_on(self, scope: Scope, call: ast.Call) -> bool:
        """A call of a function of this file hands its arguments to the parameters."""
        name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
        if name not in self._functions:
            return False
        inner, parameters = self._functions[name]
        given = [*zip(parameters, call.args, strict=False), *((k.arg, k.value) for k in call.keywords if k.arg)]
        news = [inner.add(parameter, self._kinds(scope, value)) for parameter, value in given]
        return any(news)

    def _kinds(self, scope: Scope, node: ast.expr | None) -> Kinds:
        if node is None or isinstance(node, ast.Constant):
            return NONE
        key = id(node)
        if key not in self._memo:
            self._memo[key] = NONE
            self._memo[key] = self._find_kinds(scope, node)
        return self._memo[key]

    def _find_kinds(self, scope: Scope, node: ast.expr) -> Kinds:
        match node:
            case ast.Call():
                return self._kinds_of_call(scope, node)
            case ast.Name() | ast.Attribute():
                return self._kinds_of_name(scope, node)
            case ast.Subscript():
                backwards = isinstance(node.slice, ast.Slice) and is_backwards(node.slice)
                own = {DECODED} if backwards and isinstance(node.value, ast.Constant) else set()
                return (self._kinds(scope, node.value) - {ENVIRON}) | own
            case ast.Compare() | ast.Lambda():
                return NONE
            case ast.DictComp() | ast.ListComp() | ast.SetComp() | ast.GeneratorExp():
                parts = [generator.iter for generator in node.generators]
                return self._union(scope, parts) | self._union(scope, children(node))
        return self._union(scope, children(node))

    def _kinds_of_name(self, scope: Scope, node: ast.Name | ast.Attribute) -> Kinds:
        name = self._name(node)
        if name == "os.environ":
            return frozenset({ENVIRON})
        own = scope.get(node.id) if isinstance(node, ast.Name) else _outermost(scope).get(name)
        if isinstance(node, ast.Name):
            return own
        if node.attr in REQUEST_PARTS and is_request(self._name(node.value)):
            own |= {REQUEST}
        return own | (self._kinds(scope, node.value) - {ENVIRON})

    def _kinds_of_call(self, scope: Scope, call: ast.Call) -> Kinds:
        name = self._name(call.func)
        if name in CLEANERS:
            return NONE
        method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        given = self._union(scope, [*call.args, *(keyword.value for keyword in call.keywords)])
        receiver = self._kinds(scope, call.func.value) if isinstance(call.func, ast.Attribute) else NONE
        carried = (given | receiver) & ALL
        if ENVIRON in given | receiver and (name in CARRIERS or method in CARRYING_METHODS):
            carried |= {ENVIRON}
        local = call.func.id if isinstance(call.func, ast.Name) else method
        return carried | self._own_kinds(name, method, call) | self._results.get(local, NONE)

    def _own_kinds(self, name: str, method: str, call: ast.Call) -> Kinds:
        if name in DECODERS or method == "decrypt" or (method == "join" and joins_numbers(call)):
            return frozenset({DECODED})
        if name in FETCHERS:
            return frozenset({FETCHED})
        if method in ("recv", "recvfrom", "recv_into"):
            return frozenset({RECEIVED})
        if name in INPUTS or (method in REQUEST_PARTS and is_request(name.rpartition(".")[0])):
            return frozenset({REQUEST})
        return NONE

    def _union(self, scope: Scope, nodes: Iterable[ast.expr]) -> Kinds:
        return frozenset().union(*(self._kinds(scope, node) for node in nodes))

    # Names

    def _name(self, node: ast.expr) -> str:
        """The dotted name that this leads to, through imports, ``getattr`` and ``__import__`` of plain text."""
        key = id(node)
        if key not in self._names:
            self._names[key] = ""
            self._names[key] = self._find_name(node).removeprefix("builtins.").removeprefix("__builtins__.")
        return self._names[key]

    def _find_name(self, node: ast.expr) -> str:
        match node:
            case ast.Name():
                return self._aliases.get(node.id, node.id)
            case ast.Attribute():
                return f"{self._name(node.value)}.{node.attr}"
            case ast.Call(func=function, args=[ast.Constant(value=str() as module), *_]) if self._imports(function):
                return module
            case ast.Call(func=ast.Name(id="getattr"), args=[owner, ast.Constant(value=str() as attribute), *_]):
                return f"{self._name(owner)}.{attribute}"
            case ast.Subscript(value=owner, slice=ast.Constant(value=str() as attribute)):
                name = self._name(owner)
                # __builtins__["exec"], __builtins__.__dict__["exec"], globals()["exec"], vars(builtins)["exec"]
                builtins = "builtins" in name or name == "__dict__"
                return attribute if builtins or is_namespace(owner) else f"{name}.{attribute}"
            case ast.Await():
                return self._name(node.value)
        return ""

    def _imports(self, function: ast.expr) -> bool:
        return self._name(function) in ("__import__", "importlib.import_module", "importlib.__import__")


def _outermost(scope: Scope) -> Scope:
    while scope.outer:
        scope = scope.outer
    return scope


#: What is noted of a node, by its class: a lookup costs a tenth of the patterns of a ``match``.
_NOTES: dict[type[ast.AST], Callable[..., None]] = {
    ast.Import: Facts._note_import,
    ast.ImportFrom: Facts._note_import_from,
    ast.Assign: Facts._note_assign,
    **dict.fromkeys((ast.AnnAssign, ast.AugAssign, ast.NamedExpr), Facts._note_assigned),
    **dict.fromkeys((ast.For, ast.AsyncFor, ast.comprehension), Facts._note_loop),
    ast.withitem: Facts._note_with,
    **dict.fromkeys((ast.Return, ast.Yield), Facts._note_return),
    ast.Call: Facts._note_call,
    ast.While: Facts._note_while,
    **dict.fromkeys((ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef), Facts._note_docstring),
    ast.JoinedStr: Facts._note_joined,
    ast.Constant: Facts._note_constant,
    ast.Attribute: Facts._note_attribute,
}
