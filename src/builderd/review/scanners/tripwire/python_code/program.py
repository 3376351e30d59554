"""A bundle's code as the flow analysis reads it: scopes, functions, assignments and calls of all files together."""

from __future__ import annotations

import ast
import posixpath
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from . import places
from .values import NOTHING, Value, merge, same, tainted

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
#: Name under which a JavaScript file keeps what it exports as a whole.
DEFAULT = "default"


class Scope:
    """Values of names in one function or file; unknown names are looked up in the outer scope."""

    def __init__(self, path: str, outer: Scope | None = None) -> None:
        self.path = path
        self.outer = outer
        self.names: dict[str, Value] = {}
        #: Values of the file's expressions by the id of their node.
        self.memo: dict[int, Value] = outer.memo if outer else {}
        self.outside: set[str] = set()

    def get(self, name: str) -> Value | None:
        scope: Scope | None = self
        while scope is not None:
            if name in scope.names:
                return scope.names[name]
            scope = scope.outer
        return None

    @property
    def top(self) -> Scope:
        scope = self
        while scope.outer is not None:
            scope = scope.outer
        return scope

    def declare(self, name: str) -> None:
        """Keep a name of this scope from being looked up outside."""
        if name not in self.outside:
            self.names.setdefault(name, NOTHING)

    def add(self, name: str, value: Value, *, local: bool = True) -> bool:
        """Add a possible value to a name; not ``local``: where it is declared. Return True if it is new."""
        if value is NOTHING:
            return False
        home = self
        if name in self.outside or not local:
            scope = self.outer if name in self.outside else self
            while scope is not None and name not in scope.names:
                scope = scope.outer
            home = scope or (self.top if name in self.outside else self)
        known = home.names.get(name, NOTHING)
        joined = merge(known, value)
        home.names[name] = joined
        return not same(known, joined)


@dataclass(slots=True)
class Function:
    scope: Scope
    parameters: list[str]
    returns: list[ast.expr] = field(default_factory=list)
    result: Value = NOTHING
    #: Return statements and assignments: a function with one return alone is evaluated for each call.
    simple: bool = True


@dataclass(slots=True)
class Program:
    """``assignments``: (scope, target, value, line). ``imports``: (scope, name, path, attribute or None)."""

    tops: dict[str, Scope] = field(default_factory=dict)
    functions: list[Function] = field(default_factory=list)
    keys: dict[int, int] = field(default_factory=dict)
    methods: dict[str, int] = field(default_factory=dict)
    assignments: list[tuple[Scope, ast.expr, ast.expr, int]] = field(default_factory=list)
    #: Of names that may be declared outside.
    outer_assignments: list[tuple[Scope, ast.expr, ast.expr, int]] = field(default_factory=list)
    loops: list[tuple[Scope, ast.expr, ast.expr, int]] = field(default_factory=list)
    whiles: list[tuple[Scope, ast.While]] = field(default_factory=list)
    calls: list[tuple[Scope, ast.expr]] = field(default_factory=list)
    imports: list[tuple[Scope, str, str, str | None]] = field(default_factory=list)
    #: Path → paths of the files that import it.
    importers: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    trees: Mapping[str, ast.Module] = field(default_factory=dict)
    #: Path → whether a name of the file is one of wallets, for the files where that was asked.
    wallets: dict[str, bool] = field(default_factory=dict)

    def is_key(self, path: str, name: str) -> bool:
        """Return True for a name of private keys and recovery phrases; a "secret key" is one only among such names."""
        if name not in places.SECRET_KEY_NAMES:
            return name in places.KEY_NAMES
        if path not in self.wallets:
            names: list[str] = []
            for node in ast.walk(self.trees[path]):
                match node:
                    case ast.Name(id=one) | ast.Attribute(attr=one) | ast.arg(arg=one) | ast.alias(name=one):
                        names.append(one)
                    case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                        names.append(node.name)
            self.wallets[path] = any(map(places.WALLET_NAMES.search, names))
        return self.wallets[path]


def read_program(trees: Mapping[str, ast.Module]) -> Program:
    program = Program(tops={path: Scope(path) for path in trees}, trees=trees)
    modules = _modules(trees)
    for path, tree in trees.items():
        _Reader(program, modules, path).read(tree)
    return program


def _is_handler(node: FunctionNode) -> bool:
    """Return True for a function that gets a request, or what a visitor of a chat wrote."""
    if isinstance(node, ast.Lambda):
        return False
    called = [one.func if isinstance(one, ast.Call) else one for one in node.decorator_list]
    of_web = any(isinstance(one, ast.Attribute) and one.attr in places.HANDLERS for one in called)
    return of_web or (isinstance(node, ast.AsyncFunctionDef) and node.name in places.CHAT_HANDLERS)


def _modules(paths: Mapping[str, ast.Module]) -> dict[str, str]:
    """Return dotted module → path."""
    found = {}
    for path in paths:
        if path.endswith((".py", ".pyw")):
            dotted = path.rpartition(".")[0].removesuffix("/__init__").replace("/", ".")
            found[dotted] = path
            found.setdefault(dotted.removeprefix("src."), path)
    return found


class _Reader:
    def __init__(self, program: Program, modules: Mapping[str, str], path: str) -> None:
        self._program = program
        self._modules = modules
        self._path = path
        self._folder = posixpath.dirname(path).replace("/", ".")

    def read(self, tree: ast.Module) -> None:
        waiting: list[tuple[ast.AST, Scope, Function | None, bool]] = [
            (tree, self._program.tops[self._path], None, False)
        ]
        while waiting:
            node, scope, function, of_class = waiting.pop()
            if isinstance(node, FunctionNode):
                scope, function = self._function(node, scope, of_class)
            else:
                self._note(node, scope, function)
            inside = isinstance(node, ast.ClassDef)
            # Reversed, so that they are taken in the order of the text.
            waiting += [(child, scope, function, inside) for child in reversed(list(ast.iter_child_nodes(node)))]

    def _function(self, node: FunctionNode, outer: Scope, of_class: bool) -> tuple[Scope, Function]:
        arguments = [one.arg for one in (*node.args.posonlyargs, *node.args.args)]
        rest = [one.arg for one in (node.args.vararg, *node.args.kwonlyargs, node.args.kwarg) if one]
        named = [*arguments[of_class and arguments[:1] in (["self"], ["cls"]) :], *rest]
        function = Function(Scope(self._path, outer), named)
        gets_request = _is_handler(node)
        for name in named:
            function.scope.declare(name)
            if gets_request:
                function.scope.add(name, tainted(places.REQUEST, self._path, node.lineno))
            if self._program.is_key(self._path, name):
                function.scope.add(name, tainted(places.KEY, self._path, node.lineno))
        for name, default in zip(
            arguments[len(arguments) - len(node.args.defaults) :], node.args.defaults, strict=True
        ):
            if isinstance(default, ast.Constant) and isinstance(default.value, str):
                function.scope.add(name, Value((default.value,)))
        key = len(self._program.functions)
        self._program.functions.append(function)
        self._program.keys[id(node)] = key
        if isinstance(node, ast.Lambda):
            function.returns.append(node.body)
            return function.scope, function
        function.simple = len(node.body) <= 2
        if of_class:
            self._program.methods[node.name] = key
        elif node.name:
            outer.add(node.name, Value(functions=(key,)))
        return function.scope, function

    def _note(self, node: ast.AST, scope: Scope, function: Function | None) -> None:  # noqa: C901, PLR0912 -- a branch a node
        match node:
            case ast.Import():
                for alias in node.names:
                    self._import(scope, alias.asname or alias.name.partition(".")[0], alias)
            case ast.ImportFrom():
                self._import_from(scope, node)
            case ast.Assign():
                for target in node.targets:
                    if isinstance(target, ast.Name):
                        scope.declare(target.id)
                self._program.assignments += [(scope, target, node.value, node.lineno) for target in node.targets]
            case ast.NamedExpr():
                self._program.outer_assignments.append((scope, node.target, node.value, node.lineno))
            case ast.AnnAssign() | ast.AugAssign() if node.value is not None:
                value = node.value
                if isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Add):
                    value = ast.copy_location(ast.BinOp(node.target, node.op, node.value), node)
                self._program.assignments.append((scope, node.target, value, node.lineno))
            case ast.For() | ast.AsyncFor():
                self._program.loops.append((scope, node.target, node.iter, node.lineno))
            case ast.While():
                self._program.whiles.append((scope, node))
            case ast.comprehension():
                self._program.loops.append((scope, node.target, node.iter, getattr(node.iter, "lineno", 0)))
            case ast.withitem() if node.optional_vars is not None:
                line = node.context_expr.lineno
                self._program.assignments.append((scope, node.optional_vars, node.context_expr, line))
            case ast.Return() | ast.Yield() if node.value is not None and function is not None:
                function.returns.append(node.value)
            case ast.Call() | ast.Subscript():
                self._program.calls.append((scope, node))
            case ast.Global() | ast.Nonlocal():
                scope.outside.update(node.names)
            case ast.ClassDef():
                inits = [one for one in node.body if getattr(one, "name", "") in ("__init__", "constructor")]
                if inits:
                    # The key that the function gets: it is read next among the class's nodes, so it is looked up later.
                    scope.add(node.name, Value(names=(f"class:{node.name}",)))

    def _import(self, scope: Scope, name: str, alias: ast.alias) -> None:
        path = self._module(alias.name)
        if path is not None:
            scope.add(name, Value(names=(f"file:{path}",)))
        else:
            scope.add(name, Value(names=(alias.name if alias.asname else name,)))

    def _import_from(self, scope: Scope, node: ast.ImportFrom) -> None:
        origin = node.module or ""
        if node.level:
            folder = self._folder.split(".") if self._folder else []
            base = folder[: len(folder) - node.level + 1]
            origin = ".".join([*base, *([origin] if origin else [])])
        for alias in node.names:
            name = alias.asname or alias.name
            submodule = self._module(f"{origin}.{alias.name}" if origin else alias.name)
            path = self._module(origin)
            if submodule is not None:
                scope.add(name, Value(names=(f"file:{submodule}",)))
            elif path is not None:
                self._program.imports.append((scope, name, path, alias.name))
            elif not node.level:
                scope.add(name, Value(names=(f"{origin}.{alias.name}",)))

    def _module(self, dotted: str) -> str | None:
        beside = f"{self._folder}.{dotted}" if self._folder else dotted
        path = self._modules.get(beside) or self._modules.get(dotted)
        if path is not None:
            self._program.importers[path].add(self._path)
        return path
