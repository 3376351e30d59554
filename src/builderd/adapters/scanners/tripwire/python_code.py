"""Python code, read and never run: its syntax, what it imports, and where data that must not be executed comes to it.

Standard library only, since this file is also run by the target's own interpreter where that is of another version
than the service's (``python3 -I python_code.py <folder> <names.json>``). What flows where is judged name by name
within a function and its module, without regard to the order of statements: a tripwire, not a proof.
"""

from __future__ import annotations

import ast
import json
import sys
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

#: Nested so deep, an expression is no longer what a person wrote.
MAX_DEPTH = 20_000
#: How often what is known of names is carried on.
PASSES = 5

DECODED, FETCHED, RECEIVED, REQUEST, ENVIRON = "decoded", "fetched", "received", "request", "environ"
ALL = frozenset({DECODED, FETCHED, RECEIVED, REQUEST})
NONE: frozenset[str] = frozenset()

DECODERS = frozenset(
    {
        *(f"base64.{n}" for n in ("b64decode", "b32decode", "b16decode", "b85decode", "a85decode", "decodebytes")),
        *("base64.urlsafe_b64decode", "base64.standard_b64decode", "base64.decodestring"),
        *("zlib.decompress", "gzip.decompress", "bz2.decompress", "lzma.decompress", "marshal.loads"),
        *("binascii.unhexlify", "binascii.a2b_hex", "binascii.a2b_base64", "codecs.decode"),
        *("bytes.fromhex", "bytearray.fromhex"),
    }
)
_VERBS = ("get", "post", "put", "patch", "request", "delete")
FETCHERS = frozenset(
    {f"{library}.{verb}" for library in ("requests", "httpx", "niquests") for verb in _VERBS}
    | {"urllib.request.urlopen", "urllib2.urlopen", "urllib.urlopen", "urllib3.request"}
)
SENDERS = FETCHERS | {"urllib.request.Request", "urllib2.Request"}
SEND_METHODS = frozenset({"post", "put", "patch", "send", "sendall", "sendto", "request", "urlopen", "sendmail"})
EVALUATORS = frozenset({"exec", "eval", "execfile", "types.FunctionType", "code.interact"})
SHELLS = frozenset(
    {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "commands.getoutput"}
)
PROCESSES = frozenset(
    {f"subprocess.{name}" for name in ("run", "call", "check_call", "check_output", "Popen")}
    | {
        f"os.{name}"
        for name in ("execl", "execle", "execlp", "execv", "execve", "execvp", "execvpe", "spawnl", "spawnv")
    }
    | {"pty.spawn", "asyncio.create_subprocess_shell", "asyncio.create_subprocess_exec"}
)
TEMPLATES = frozenset(
    {"flask.render_template_string", "jinja2.Template", "render_template_string", "mako.template.Template"}
)
CLEANERS = frozenset({"int", "float", "len", "bool", "isinstance", "hash", "id", "type", "shlex.quote", "sum", "ord"})
#: What hands an environment on whole.
CARRIERS = frozenset(
    {
        *("dict", "str", "repr", "bytes", "list", "tuple", "json.dumps", "urllib.parse.urlencode", "sorted"),
        *("urllib.parse.quote", "urllib.parse.quote_plus", "base64.b64encode", "binascii.hexlify", "zlib.compress"),
    }
)
CARRYING_METHODS = frozenset(
    {"copy", "items", "values", "encode", "decode", "format", "join", "dumps", "b64encode", "hexlify", "hex"}
)
REQUEST_PARTS = frozenset(
    {
        *("args", "form", "values", "json", "data", "headers", "cookies", "files", "get_json", "query", "params"),
        *("forms", "body", "GET", "POST", "query_params", "query_string", "path_params", "stream", "rel_url"),
    }
)
HANDLERS = frozenset({"get", "post", "put", "delete", "patch", "route", "websocket", "api_route", "head", "options"})
INPUTS = frozenset({f"streamlit.{name}" for name in ("text_input", "text_area", "chat_input")})
INTERPRETERS = ("sh", "bash", "python", "python3", "node", "perl", "ruby", "powershell", "cmd", "zsh", "dash")

Kinds = frozenset[str]
Seen = dict[str, Any]


def analyse(source: bytes, path: str, paths: Collection[str]) -> Seen:
    """``{"hits": [[rule, line]], "modules", "paths", "folders", "anything", "strings": [[line, text]]}``.

    Or ``{"error": why, "line": n, "kind": "syntax" | "unparsable"}``. ``paths`` are those of the whole bundle.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = compile(source, path, "exec", ast.PyCF_ONLY_AST, dont_inherit=True)
        assert isinstance(tree, ast.Module)
        return Module(tree, path, paths).seen()
    except SyntaxError as error:
        kind = "unparsable" if "too many nested" in str(error) or "too complex" in str(error) else "syntax"
        return {"error": str(error.msg)[:300], "line": error.lineno or 0, "kind": kind}
    except (RecursionError, MemoryError):
        return {"error": "it is nested too deep to be read", "line": 0, "kind": "unparsable"}
    except ValueError as error:
        return {"error": str(error)[:300], "line": 0, "kind": "unparsable"}


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


class Module:
    """One file."""

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

    def seen(self) -> Seen:
        self._collect()
        self._flow()
        self._called = {self._name(call.func) for _, call in self._calls}
        self._methods = {call.func.attr for _, call in self._calls if isinstance(call.func, ast.Attribute)}
        for scope, call in self._calls:
            self._judge(scope, call)
        self._judge_shape()
        return {
            "hits": sorted(self._hits),
            "modules": sorted(self._modules),
            "paths": sorted(self._mentioned),
            "folders": sorted(self._folders & {text.strip("./") for _, text in self._strings})
            if self._searches
            else [],
            "anything": self._anything,
            "strings": self._strings,
        }

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
            waiting.extend((child, inner, function) for child in ast.iter_child_nodes(node))

    def _note(self, node: ast.AST, scope: Scope, function: str) -> None:  # noqa: C901, PLR0912 -- a branch a node
        match node:
            case ast.Import():
                self._note_import(node)
            case ast.ImportFrom():
                self._note_import_from(node)
            case ast.Assign():
                self._assignments += [(scope, target, node.value) for target in node.targets]
                self._note_alias(node)
                self._note_lambda(node, scope)
            case ast.AnnAssign() | ast.AugAssign() | ast.NamedExpr() if node.value is not None:
                self._assignments.append((scope, node.target, node.value))
            case ast.For() | ast.AsyncFor() | ast.comprehension():
                self._assignments.append((scope, node.target, node.iter))
            case ast.withitem() if node.optional_vars is not None:
                self._assignments.append((scope, node.optional_vars, node.context_expr))
            case ast.Return() | ast.Yield() if node.value is not None:
                self._returns.append((function, scope, node.value))
            case ast.Call():
                self._calls.append((scope, node))
            case ast.While():
                self._loops.append(node)
            case ast.Module() | ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                self._note_docstring(node)
            case ast.JoinedStr():
                text = "".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values)
                self._note_string(node.lineno, text)
                self._docstrings |= {id(v) for v in node.values}
            case ast.Constant(value=str() as text) if id(node) not in self._docstrings:
                self._note_string(node.lineno, text)
            case ast.Constant(value=bytes() as content):
                self._note_string(node.lineno, content.decode("latin-1"))
            case ast.Attribute(attr="path", value=ast.Name(id="sys")):
                self._searches = True

    def _note_import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._modules.add(alias.name)
            if alias.asname:
                self._aliases[alias.asname] = alias.name

    def _note_import_from(self, node: ast.ImportFrom) -> None:
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
        if any(self._is_handler(decorator) for decorator in node.decorator_list):
            for argument in arguments:
                inner.add(argument, frozenset({REQUEST}))
        return node.name

    def _is_handler(self, decorator: ast.expr) -> bool:
        called = decorator.func if isinstance(decorator, ast.Call) else decorator
        return isinstance(called, ast.Attribute) and called.attr in HANDLERS

    def _note_docstring(self, node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> None:
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
                backwards = isinstance(node.slice, ast.Slice) and _is_backwards(node.slice)
                own = {DECODED} if backwards and isinstance(node.value, ast.Constant) else set()
                return (self._kinds(scope, node.value) - {ENVIRON}) | own
            case ast.Compare() | ast.Lambda():
                return NONE
            case ast.DictComp() | ast.ListComp() | ast.SetComp() | ast.GeneratorExp():
                parts = [generator.iter for generator in node.generators]
                return self._union(scope, parts) | self._union(scope, _children(node))
        return self._union(scope, _children(node))

    def _kinds_of_name(self, scope: Scope, node: ast.Name | ast.Attribute) -> Kinds:
        name = self._name(node)
        if name == "os.environ":
            return frozenset({ENVIRON})
        own = scope.get(node.id) if isinstance(node, ast.Name) else _outermost(scope).get(name)
        if isinstance(node, ast.Name):
            return own
        if node.attr in REQUEST_PARTS and _is_request(self._name(node.value)):
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
        if name in DECODERS or method == "decrypt" or (method == "join" and _joins_numbers(call)):
            return frozenset({DECODED})
        if name in FETCHERS:
            return frozenset({FETCHED})
        if method in ("recv", "recvfrom", "recv_into"):
            return frozenset({RECEIVED})
        if name in INPUTS or (method in REQUEST_PARTS and _is_request(name.rpartition(".")[0])):
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
                return attribute if builtins or _is_namespace(owner) else f"{name}.{attribute}"
            case ast.Await():
                return self._name(node.value)
        return ""

    def _imports(self, function: ast.expr) -> bool:
        return self._name(function) in ("__import__", "importlib.import_module", "importlib.__import__")

    # Judging

    def _judge(self, scope: Scope, call: ast.Call) -> None:
        name = self._name(call.func)
        method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
        if name in EVALUATORS:
            self._judge_evaluation(call, self._union(scope, call.args))
        elif name in SHELLS or name in PROCESSES:
            self._judge_process(scope, call, name)
        elif name in TEMPLATES or method == "from_string":
            self._hit_if(REQUEST in self._union(scope, call.args[:1]), "RSK-request-template", call)
        elif name in SENDERS or method in SEND_METHODS:
            self._hit_if(ENVIRON in self._union(scope, arguments), "MAL-environment-sent", call)
        if method in ("execute", "executemany", "executescript", "raw") and call.args:
            self._hit_if(_is_built(call.args[0]), "INJ-sql", call)
        if name in ("open", "flask.send_file") and call.args:
            self._hit_if(REQUEST in self._kinds(scope, call.args[0]), "INJ-path", call)
        if name == "shutil.rmtree" and call.args and getattr(call.args[0], "value", None) == "/":
            self._hit_if(True, "MAL-destroys", call)
        self._note_dynamic_import(name, call)

    def _judge_evaluation(self, call: ast.Call, kinds: Kinds) -> None:
        self._hit_if(DECODED in kinds, "MAL-decoded-executed", call)
        self._hit_if(FETCHED in kinds, "MAL-fetched-executed", call)
        self._hit_if(RECEIVED in kinds, "MAL-remote-commands", call)
        self._hit_if(REQUEST in kinds and not kinds & {DECODED, FETCHED, RECEIVED}, "RSK-request-evaluated", call)

    def _judge_process(self, scope: Scope, call: ast.Call, name: str) -> None:
        if not call.args:
            return
        command = call.args[0]
        kinds = self._kinds(scope, command)
        through_shell = self._is_shell(call, name) or _starts_interpreter(command)
        whole = not isinstance(command, ast.JoinedStr | ast.BinOp)
        self._hit_if(through_shell and DECODED in kinds, "MAL-decoded-executed", call)
        if through_shell and FETCHED in kinds:
            self._hit_if(True, "MAL-fetched-executed" if whole else "RSK-fetched-in-command", call)
        self._hit_if(RECEIVED in kinds and self._opens_socket, "MAL-remote-commands", call)
        self._hit_if(through_shell and REQUEST in kinds, "RSK-request-in-shell", call)
        piped = [k.value for k in call.keywords if k.arg in ("stdin", "stdout", "stderr")]
        handed = any(
            isinstance(p, ast.Call) and isinstance(p.func, ast.Attribute) and p.func.attr == "fileno" for p in piped
        )
        self._hit_if(handed and self._opens_socket and "connect" in self._methods, "MAL-reverse-shell", call)

    def _is_shell(self, call: ast.Call, name: str) -> bool:
        told = [k.value for k in call.keywords if k.arg == "shell"]
        return name in SHELLS or name.endswith("_shell") or any(getattr(value, "value", True) for value in told)

    @property
    def _opens_socket(self) -> bool:
        return bool(self._called & {"socket.socket", "socket.create_connection"})

    def _judge_shape(self) -> None:
        """Match rules that need several calls of one file."""
        connects = "connect" in self._methods or "socket.create_connection" in self._called
        runs = self._called & (SHELLS | PROCESSES)
        if self._opens_socket and (connects or "accept" in self._methods) and "os.dup2" in self._called and runs:
            self._hit_all("MAL-reverse-shell", {"os.dup2"})
        fetches = self._called & (FETCHERS | {"urllib.request.urlretrieve"})
        if self._path.rpartition("/")[2] == "setup.py" and fetches and (runs or self._called & EVALUATORS):
            self._hit_all("MAL-install-hook", fetches)
        self._judge_downloads()
        for loop in self._loops:
            forks = any(isinstance(node, ast.Call) and self._name(node.func) == "os.fork" for node in ast.walk(loop))
            endless = isinstance(loop.test, ast.Constant) and bool(loop.test.value)
            if (
                forks
                and endless
                and len(loop.body) <= 2
                and not any(isinstance(n, ast.Break | ast.If) for n in ast.walk(loop))
            ):
                self._hits.add(("MAL-fork-bomb", loop.lineno))

    def _judge_downloads(self) -> None:
        """A file that is downloaded under a name, and a program of that name that is run."""
        saved = {
            ast.dump(call.args[1])
            for _, call in self._calls
            if self._name(call.func) in ("urllib.request.urlretrieve", "urllib.urlretrieve") and len(call.args) > 1
        }
        for scope, call in self._calls:
            writes = isinstance(call.func, ast.Attribute) and call.func.attr in ("write", "write_bytes", "write_text")
            if writes and FETCHED in self._union(scope, call.args):
                saved |= self._file_names(call.func)  # type: ignore[arg-type]
        if not saved:
            return
        for _, call in self._calls:
            if self._name(call.func) in SHELLS | PROCESSES and call.args:
                parts = [ast.dump(node) for node in ast.walk(call.args[0]) if isinstance(node, ast.expr)]
                self._hit_if(any(part in saved for part in parts), "MAL-fetched-executed", call)

    def _file_names(self, function: ast.Attribute) -> set[str]:
        """Return the names (as AST dumps) under which the written file was opened."""
        if not isinstance(function.value, ast.Name):
            return {
                ast.dump(part) for part in ast.walk(function.value) if isinstance(part, ast.Constant) and part.value
            }
        opened = [v for _, t, v in self._assignments if isinstance(t, ast.Name) and t.id == function.value.id]
        calls = [v for v in opened if isinstance(v, ast.Call) and self._name(v.func) == "open" and v.args]
        return {ast.dump(call.args[0]) for call in calls}

    def _note_dynamic_import(self, name: str, call: ast.Call) -> None:
        if name in ("__import__", "importlib.import_module", "importlib.__import__") and call.args:
            first = call.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                self._modules.add(first.value)
            else:
                self._anything = True

    def _hit_if(self, condition: bool, rule: str, node: ast.Call) -> None:
        if condition:
            self._hits.add((rule, node.lineno))

    def _hit_all(self, rule: str, names: Collection[str]) -> None:
        lines = [call.lineno for _, call in self._calls if self._name(call.func) in names]
        self._hits |= {(rule, line) for line in lines[:1]}


def _outermost(scope: Scope) -> Scope:
    while scope.outer:
        scope = scope.outer
    return scope


def _children(node: ast.AST) -> Iterator[ast.expr]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            yield child
        elif isinstance(child, ast.keyword):
            yield child.value


def _is_backwards(part: ast.Slice) -> bool:
    step = part.step
    return isinstance(step, ast.UnaryOp) and isinstance(step.op, ast.USub)


def _is_request(name: str) -> bool:
    last = name.rpartition(".")[2]
    return last in ("request", "req", "flask_request") or name.endswith(".request")


def _joins_numbers(call: ast.Call) -> bool:
    """``"".join(map(chr, …))`` and ``"".join(chr(n) for n in …)``."""
    inside = [node for argument in call.args for node in ast.walk(argument)]
    return any(isinstance(node, ast.Name) and node.id == "chr" for node in inside)


def _is_namespace(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("globals", "locals", "vars")
    )


def _is_built(node: ast.expr) -> bool:
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


def _starts_interpreter(command: ast.expr) -> bool:
    if not isinstance(command, ast.List | ast.Tuple) or not command.elts:
        return False
    first = command.elts[0]
    name = first.value.rpartition("/")[2] if isinstance(first, ast.Constant) and isinstance(first.value, str) else ""
    return name in INTERPRETERS or (isinstance(first, ast.Attribute) and first.attr == "executable")


def analyse_all(sources: Mapping[str, bytes], paths: Sequence[str]) -> dict[str, Seen]:
    """By path."""
    sys.setrecursionlimit(MAX_DEPTH)
    return {path: analyse(source, path, paths) for path, source in sources.items()}


def main() -> None:
    """Analyse ``<folder>/<number>`` for each named file; the names come as ``[[path, number], …]`` and all paths."""
    folder, names = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    sources = {path: (folder / str(number)).read_bytes() for path, number in names["files"]}
    sys.stdout.write(json.dumps(analyse_all(sources, names["paths"])))


if __name__ == "__main__":
    main()
