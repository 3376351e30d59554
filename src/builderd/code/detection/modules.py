"""Python modules of a project: what each imports, makes and calls, by its syntax tree; nothing is run."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice

from builderd.code.detection.project import WORDS, Project

USUAL: Sequence[str] = WORDS["usual"]
_OTHERS = re.compile(WORDS["others"], re.IGNORECASE)
MAX_MODULES, MAX_SOURCE, MAX_SOURCES, MAX_NODES = 300, 200_000, 400_000, 100_000
MAX_DOTS, MAX_HOPS = 12, 5

_RAW = {("scope", "receive", "send"): "asgi", ("environ", "start_response"): "wsgi"}


@dataclass
class Module:
    """One module. Names are dotted, by where they are imported from: ``fastapi.FastAPI``; own ones begin with dots.

    ``imports`` has each local name, ``objects`` what was called to make each variable of the module, ``makers`` what
    each function calls that returns something, ``factories`` that of those that need no argument, ``calls`` all that is
    called anywhere; methods of unknown objects are as ``.run``. ``loops``: it has an endless loop.
    """

    path: str
    imports: dict[str, str] = field(default_factory=dict)
    objects: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    factories: dict[str, list[str]] = field(default_factory=dict)
    makers: dict[str, list[str]] = field(default_factory=dict)
    calls: set[str] = field(default_factory=set)
    loops: bool = False

    @property
    def rank(self) -> tuple[int, int, int, str]:
        """Return how likely the app is in it: the lowest is the likeliest."""
        name = self.path.rpartition("/")[2].removesuffix(".py")
        usual = USUAL.index(name) if name in USUAL else len(USUAL)
        depth = self.path.removeprefix("src/").count("/") - (name == "__init__")
        return bool(_OTHERS.search(self.path)), depth, usual, self.path

    @property
    def is_other(self) -> bool:
        """Return True for code that is not the app: tests, examples, scripts."""
        return self.rank[0] > 0


class Modules:
    """Modules of a project, parsed when they are asked for."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._known: dict[str, Module] = {}
        self._left = MAX_SOURCES

    @cached_property
    def paths(self) -> Sequence[str]:
        """Python files, the likeliest first, without those of environments and packages."""
        found = (one for one in self._project.paths if one.endswith(".py") and "site-packages/" not in one)
        return sorted(found, key=lambda path: Module(path).rank)[:MAX_MODULES]

    def mentioning(self, words: Collection[str]) -> list[Module]:
        """Return the modules whose text has one of these words, the likeliest first."""
        pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, sorted(words)))})\b")
        return [self.parsed(path) for path in self.paths if pattern.search(self._project.text(path))]

    def parsed(self, path: str) -> Module:
        """Return the module; an empty one where it is no Python, or where enough was read."""
        if path not in self._known:
            text, module = self._project.text(path), Module(path)
            if len(text) <= min(MAX_SOURCE, self._left):
                self._left -= len(text)
                _read(text, module)
            self._known[path] = module
        return self._known[path]

    def locate(self, name: str, by: str) -> str:
        """Return the file that an import of this dotted name in the file ``by`` runs, else ""."""
        inner = name.lstrip(".")
        dots, parts, above = len(name) - len(inner), inner.strip(".").split("."), by.split("/")[:-1]
        if not name.strip("."):
            parts = [] if dots else ["."]
        bases = [above[: len(above) - dots + 1]] if dots else [above[:count] for count in range(len(above), -1, -1)]
        bases += [] if dots else [["src"]]
        for base in bases:
            stem = "/".join((*base, *parts))
            if found := self._project.first(f"{stem}.py", f"{stem}/__init__.py"):
                return found
        return ""

    def origins(self, name: str, by: str, hops: int = MAX_HOPS) -> Iterator[str]:
        """Yield a dotted name and, for one of another module of the project, what that makes it of."""
        yield name
        attribute = name.rpartition(".")[2]
        path = self.locate(name[: -len(attribute)], by) if hops else ""
        if path and path != by:
            module = self.parsed(path)
            made = [*module.objects.get(attribute, ()), *module.makers.get(attribute, ())]
            for one in (*made[:50], module.imports.get(attribute)):
                yield from self.origins(one, path, hops - 1) if one else ()

    def base(self, module: Module) -> str:
        """Return the folder from which its imports work, "" for that of the code."""
        above = module.path.split("/")[:-1]
        dots = max((len(one) - len(one.lstrip(".")) for one in module.imports.values()), default=0)
        names = {one.split(".")[0] for one in module.imports.values() if not one.startswith(".")}

        def works(count: int) -> tuple[int, bool, int]:
            prefix = "".join(f"{one}/" for one in above[:count])
            found = self._project.paths | self._project.folders
            local = sum(f"{prefix}{name}.py" in found or f"{prefix}{name}" in found for name in names)
            is_importable = all(part.isidentifier() for part in above[count:])
            return is_importable * (local + 1), prefix == "src/", -count

        return "/".join(above[: max(range(max(len(above) - dots, 0) + 1), key=works)])


def _read(text: str, module: Module) -> None:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    nodes = list(islice(ast.walk(tree), MAX_NODES))
    for node in nodes:
        _add_import(node, module)
    for node in nodes:
        if isinstance(node, ast.Call):
            module.calls.update(_called(node, module))
        elif isinstance(node, ast.While):
            module.loops = module.loops or (isinstance(node.test, ast.Constant) and bool(node.test.value))
    for statement in _statements(tree.body):
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            _add_function(statement, module)
        for target, value in _assigned(statement):
            first = target.elts[0] if isinstance(target, ast.Tuple) and target.elts else target
            if isinstance(first, ast.Name):
                made = [f".{value.attr}"] if isinstance(value, ast.Attribute) else []
                module.objects[first.id] += _called(value, module) if isinstance(value, ast.Call) else made


def _add_import(node: ast.AST, module: Module) -> None:
    if isinstance(node, ast.Import):
        for one in node.names:
            first = one.name.split(".")[0]
            module.imports[one.asname or first] = one.name if one.asname else first
            # ``import a.b`` needs the module, too.
            module.imports.setdefault(one.name, one.name)
    elif isinstance(node, ast.ImportFrom):
        origin = "." * node.level + (f"{node.module}." if node.module else "")
        module.imports.update((one.asname or one.name, origin + one.name) for one in node.names)


def _assigned(statement: ast.stmt) -> Iterator[tuple[ast.expr, ast.expr | None]]:
    """Yield what a statement assigns to: targets and values, those of ``with … as`` too."""
    match statement:
        case ast.Assign():
            yield from ((target, statement.value) for target in statement.targets)
        case ast.AnnAssign():
            yield statement.target, statement.value
        case ast.With() | ast.AsyncWith():
            yield from ((one.optional_vars, one.context_expr) for one in statement.items if one.optional_vars)


def _add_function(function: ast.FunctionDef | ast.AsyncFunctionDef, module: Module) -> None:
    arguments = [*function.args.posonlyargs, *function.args.args]
    raw = _RAW.get(tuple(one.arg for one in arguments))
    if raw and (raw == "asgi") == isinstance(function, ast.AsyncFunctionDef):
        module.objects[function.name].append(raw)
    needed = len(arguments) - len(function.args.defaults) + sum(one is None for one in function.args.kw_defaults)
    if any(isinstance(one, ast.Return) and one.value for one in ast.walk(function)):
        calls = (one for one in ast.walk(function) if isinstance(one, ast.Call))
        made = [name for call in calls for name in _called(call, module)][:200]
        module.makers[function.name] = made
        if needed <= 0:
            module.factories[function.name] = made


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a module, those below ``if``, ``try`` and ``with`` too."""
    waiting = list(body)[::-1]
    while waiting:
        statement = waiting.pop()
        yield statement
        for part in ("finalbody", "orelse", "handlers", "body"):
            if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                waiting += reversed(getattr(statement, part, []))


def _called(call: ast.Call, module: Module) -> list[str]:
    """Return the dotted names that a call and the calls before its dots name; methods of objects as ``.run``."""
    found, node = [], call.func
    parts: list[str] = []
    for _ in range(MAX_DOTS):
        match node:
            case ast.Attribute():
                parts.append(node.attr)
                node = node.value
            case ast.Call():
                if parts:
                    found.append(f".{parts[0]}")
                parts, node = [], node.func
            case ast.Name():
                # A name that ``from … import *`` may have brought.
                starred = [module.imports["*"][:-1] + node.id] if "*" in module.imports else []
                names = [module.imports[node.id]] if node.id in module.imports else [node.id, *starred]
                found += [".".join((name, *reversed(parts))) for name in names]
                break
            case _:
                break
    return [*found, *([f".{parts[0]}"] if parts else [])]
