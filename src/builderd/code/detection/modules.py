"""Python modules of a project: what each imports, makes and calls, by its syntax tree; nothing is run."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from builderd.code.detection.project import Project

#: Names of the files in which an app usually is, the likeliest first.
USUAL = ("wsgi", "asgi", "main", "app", "server", "application", "api", "run", "streamlit_app", "Home", "index", "bot")
#: Folders of code that is not the app.
_OTHERS = re.compile(r"(?:^|/)(?:tests?|testing|examples?|docs?|scripts|migrations|alembic|benchmarks|\..*)/", re.I)
_TEST = re.compile(r"(?:^|/)(?:test_[^/]*|[^/]*_test|conftest|setup|noxfile|fabfile|tasks|gunicorn[^/]*)\.py$")
MAX_MODULES, MAX_SOURCE, MAX_SOURCES, MAX_NODES = 300, 200_000, 1_500_000, 200_000
MAX_DOTS, MAX_HOPS = 12, 5

_RAW = {("scope", "receive", "send"): "asgi", ("environ", "start_response"): "wsgi"}


@dataclass
class Module:
    """One module. Names are dotted, by where they are imported from: ``fastapi.FastAPI``."""

    path: str
    #: Local name → what it was imported as; those of its own package begin with dots.
    imports: dict[str, str] = field(default_factory=dict)
    #: Variable of the module → what was called to make it, in order.
    objects: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    #: Function of the module that needs no argument → what it calls.
    factories: dict[str, list[str]] = field(default_factory=dict)
    #: All that is called anywhere; methods of unknown objects as ``.run``.
    calls: set[str] = field(default_factory=set)
    #: True where it has an endless loop.
    loops: bool = False

    @property
    def depth(self) -> int:
        return self.path.removeprefix("src/").count("/")

    @property
    def rank(self) -> tuple[int, int, int, str]:
        """Return how likely the app is in it: the lowest is the likeliest."""
        name = self.path.rpartition("/")[2].removesuffix(".py")
        usual = USUAL.index(name) if name in USUAL else len(USUAL)
        return is_other(self.path), self.depth - (name == "__init__"), usual, self.path


def is_other(path: str) -> bool:
    """Return True for code that is not the app: tests, examples, scripts."""
    return bool(_OTHERS.search(path) or _TEST.search(path))


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
        dots = len(name) - len(name.lstrip("."))
        parts, above = name.strip(".").split("."), by.split("/")[:-1]
        bases = [above[: len(above) - dots + 1]] if dots else [above[:count] for count in range(len(above), -1, -1)]
        bases += [] if dots else [["src"]]
        for base in bases:
            stem = "/".join((*base, *filter(None, parts)))
            if found := self._project.first(f"{stem}.py", f"{stem}/__init__.py"):
                return found
        return ""

    def origins(self, name: str, by: str, hops: int = MAX_HOPS) -> Iterator[str]:
        """Yield a dotted name and, for one of another module of the project, what that makes it of."""
        yield name
        owner, _, attribute = name.rpartition(".")
        path = self.locate(owner or "." * (len(name) - len(name.lstrip("."))), by) if hops and owner.strip(".") else ""
        if not path and hops and name.startswith("."):
            path = self.locate("." * (len(name) - len(name.lstrip("."))), by)
        if not path or path == by:
            return
        module = self.parsed(path)
        made = [*module.objects.get(attribute, ()), *module.factories.get(attribute, ())]
        for one in (*made[:50], *filter(None, [module.imports.get(attribute)])):
            yield from self.origins(one, path, hops - 1)

    def base(self, module: Module) -> str:
        """Return the folder from which its imports work, "" for that of the code."""
        above = module.path.split("/")[:-1]
        dots = max((len(one) - len(one.lstrip(".")) for one in module.imports.values()), default=0)
        most = max(len(above) - dots, 0)
        bases = ["/".join(above[:count]) for count in range(most + 1)]
        names = {one.split(".")[0] for one in module.imports.values() if not one.startswith(".")}

        def works(base: str) -> tuple[int, bool, bool, int]:
            prefix = f"{base}/" if base else ""
            local = sum(
                f"{prefix}{name}.py" in self._project.paths or f"{prefix}{name}" in self._project.folders
                for name in names
            )
            inner = module.path.removeprefix(prefix).split("/")[:-1]
            is_importable = all(part.isidentifier() for part in inner)
            return is_importable * (local + 1), is_importable, base == "src", -len(base)

        return max(bases, key=works)


def _read(text: str, module: Module) -> None:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for count, node in enumerate(_nodes(tree)):
        if count > MAX_NODES:
            break
        match node:
            case ast.Import():
                for one in node.names:
                    module.imports[one.asname or one.name.split(".")[0]] = one.name if one.asname else one.name.split(".")[0]
                    # ``import a.b`` is a dependency on the module, too.
                    module.imports.setdefault(one.name, one.name)
            case ast.ImportFrom():
                origin = "." * node.level + (node.module or "")
                for one in node.names:
                    module.imports[one.asname or one.name] = f"{origin}.{one.name}" if node.module else origin + one.name
            case ast.While(test=ast.Constant(value=True) | ast.Constant(value=1)):
                module.loops = True
    for node in list(_nodes(tree))[:MAX_NODES]:
        if isinstance(node, ast.Call):
            module.calls.update(_called(node, module))
    for statement in _statements(tree.body):
        match statement:
            case ast.Assign(value=ast.Call() as call):
                for target in statement.targets:
                    first = target.elts[0] if isinstance(target, ast.Tuple) and target.elts else target
                    if isinstance(first, ast.Name):
                        module.objects[first.id] += _called(call, module)
            case ast.Assign(value=ast.Attribute() as value, targets=[ast.Name() as name]):
                module.objects[name.id].append(f".{value.attr}")
            case ast.AnnAssign(value=ast.Call() as call, target=ast.Name() as name):
                module.objects[name.id] += _called(call, module)
            case ast.With() | ast.AsyncWith():
                for item in statement.items:
                    if isinstance(item.context_expr, ast.Call) and isinstance(item.optional_vars, ast.Name):
                        module.objects[item.optional_vars.id] += _called(item.context_expr, module)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                _add_function(statement, module)


def _add_function(function: ast.FunctionDef | ast.AsyncFunctionDef, module: Module) -> None:
    arguments = [*function.args.posonlyargs, *function.args.args]
    raw = _RAW.get(tuple(one.arg for one in arguments))
    if raw and (raw == "asgi") == isinstance(function, ast.AsyncFunctionDef):
        module.objects[function.name].append(raw)
    needed = len(arguments) - len(function.args.defaults) + sum(one is None for one in function.args.kw_defaults)
    if needed <= 0 and any(isinstance(one, ast.Return) and one.value for one in _nodes(function)):
        calls = (one for one in _nodes(function) if isinstance(one, ast.Call))
        module.factories[function.name] = [name for call in calls for name in _called(call, module)][:200]


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes in the order of the text, without recursion."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += reversed(list(ast.iter_child_nodes(node)))


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
    """Return the dotted names that a call and the calls before its dots name; a method of another object as ``.run``."""
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
                dotted = ".".join((module.imports.get(node.id, node.id), *reversed(parts)))
                return [*found, dotted, *([f".{parts[0]}"] if parts else [])]
            case _:
                break
    return [*found, *([f".{parts[0]}"] if parts else [])]

