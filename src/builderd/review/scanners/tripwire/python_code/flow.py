"""Flow of data through a bundle: what assignments, calls and returns hand on, and what calls return and keep.

Each name has all values that it is ever given, without regard to the order of statements. Some passes over all
assignments, calls and returns find them, in all files of the bundle together.
"""

from __future__ import annotations

import ast
import posixpath
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from . import places
from .evaluation import (
    MAX_DEPTH,
    MAX_NAME,
    MAX_STEPS,
    PASSED,
    PASSES,
    REFERENCES,
    Evaluation,
    dotted,
    is_request,
    item_of,
    member_of,
    normal,
    sent_part,
)
from .program import Function, Scope
from .values import (
    FUNCTIONS,
    MAX_LENGTH,
    MAX_NAMES,
    METHODS,
    NOTHING,
    UNKNOWN,
    Constant,
    Value,
    call_folded,
    carried,
    constant,
    joined,
    merge,
    same,
    stepped,
    tainted,
)

Entry = TypeVar("Entry", bound="tuple[Any, ...]")
#: Most names of files that one value is followed under.
MAX_FILES = 4


class Call(NamedTuple):
    """A call with the values of its parts. ``owner`` is what the method belongs to; ``method`` is "" without one."""

    scope: Scope
    node: ast.Call
    function: Value
    names: list[str]
    method: str
    owner: Value
    given: list[Value]

    def argument(self, number: int = 0) -> ast.expr | None:
        return self.node.args[number] if len(self.node.args) > number else None

    def tainted(self, kind: str) -> Value:
        return tainted(kind, self.scope.path, self.node.lineno)

    def stepped(self, value: Value) -> Value:
        return stepped(value, self.scope.path, self.node.lineno)

    @property
    def object(self) -> ast.expr | None:
        """The expression that the method belongs to."""
        return self.node.func.value if isinstance(self.node.func, ast.Attribute) else None


class Flow(Evaluation):
    """Hands values on between all files."""

    def run(self, passes: int = PASSES) -> None:
        """Evaluate all files, then those again in which something new came up, or in a file that they import."""
        active = set(self._paths)
        for _ in range(passes):
            self._changed = set()
            self._pass(active)
            active = {*self._changed, *(one for path in self._changed for one in self._program.importers[path])}
            if not active:
                return

    def _pass(self, active: Collection[str]) -> None:
        program = self._program
        for path in active:
            program.tops[path].memo.clear()
        for scope, name, path, attribute in _within(active, program.imports):
            self._note(scope, scope.add(name, self._of_file(path, attribute)))
        for scope, target, value, line in _within(active, program.assignments):
            self._assign(scope, target, stepped(self.of(scope, value), scope.path, line))
        for scope, target, value, line in _within(active, program.outer_assignments):
            self._assign(scope, target, stepped(self.of(scope, value), scope.path, line), local=False)
        for scope, target, value, line in _within(active, program.loops):
            self._assign(scope, target, stepped(item_of(self.of(scope, value)), scope.path, line))
        for scope, node in _within(active, program.calls):
            self.of(scope, node)
        for function in program.functions:
            if function.scope.path not in active:
                continue
            result = merge(*(self.of(function.scope, value) for value in function.returns))
            if not same(result, function.result):
                joint = merge(function.result, result)
                self._note(function.scope, not same(joint, function.result))
                function.result = joint

    def _note(self, scope: Scope, is_new: bool) -> None:
        if is_new:
            self._changed.add(scope.path)

    def _assign(self, scope: Scope, target: ast.expr, value: Value, *, local: bool = True) -> None:
        """Give a target a value; not ``local``: the name may be declared in an outer scope."""
        if value is NOTHING:
            return
        match target:
            case ast.Name():
                self._note(scope, scope.add(target.id, value, local=local))
            case ast.Attribute():
                self._note(scope, scope.top.add(dotted(target), value))
                if not isinstance(target.value, ast.Name) or target.value.id not in ("self", "this", "cls"):
                    self._assign(scope, target.value, carried(value), local=False)
            case ast.Tuple() | ast.List():
                for number, part in enumerate(target.elts):
                    self._assign(scope, part, member_of(value, number))
            case ast.Starred():
                self._assign(scope, target.value, value)
            case ast.Subscript():
                self._assign(scope, target.value, carried(sent_part(target.slice, value)), local=False)

    # Calls

    def read_call(self, scope: Scope, node: ast.Call) -> Call:
        function = self.of(scope, node.func)
        given = [self.of(scope, one) for one in (*node.args, *(keyword.value for keyword in node.keywords))]
        method, owner = "", NOTHING
        if isinstance(node.func, ast.Attribute):
            method, owner = node.func.attr, self.of(scope, node.func.value)
        return Call(scope, node, function, [normal(name) for name in function.names], method, owner, given)

    def _call(self, scope: Scope, node: ast.Call) -> Value:
        call = self.read_call(scope, node)
        followed = [name for name in call.names if len(name) < MAX_NAME and not name.startswith(REFERENCES)]
        result = merge(
            self._led_to(call),
            self._folded(call),
            self._called(call),
            self._data(call),
            Value(names=tuple(f"{name}()" for name in followed)),
        )
        self._store(call)
        self._hand_on(call, result)
        return result

    def _led_to(self, call: Call) -> Value:
        """Return what names in texts lead to: ``getattr``, imports, and functions that return their argument."""
        names, given = call.names, call.given
        if not given:
            if any(name in ("process.cwd", "os.getcwd", "pathlib.Path.cwd") for name in names):
                return constant(".")
            return constant("~") if any(name in ("pathlib.Path.home", "os.homedir") for name in names) else NOTHING
        first = given[0]
        if any(name in places.IMPORTS for name in names):
            return merge(*(self._imported(call, text, first.built) for text in first.texts[:MAX_NAMES]))
        if "getattr" in names and len(given) > 1:
            return merge(*(self._named(call.scope, first, text, given[1].built, call.node) for text in given[1].texts))
        if any(name in places.JOINERS for name in names):
            return joined(given, "/")
        if any(name in ("os.getenv", "os.environ.get") for name in names) and set(first.texts) & places.HOMES:
            return constant("~")
        if any(name in PASSED for name in names):
            return joined(given, "/") if len(given) > 1 and "pathlib.Path" in names else first
        return joined([call.owner, *given], "/") if call.method == "joinpath" else NOTHING

    def _imported(self, call: Call, text: str, built: bool) -> Value:
        name, path = text.removeprefix("node:"), call.scope.path
        if built and name in places.DANGEROUS:
            self._hidden.add((path, call.node.lineno))
        if name.startswith("."):
            stem = posixpath.normpath(posixpath.join(posixpath.dirname(path), name))
            endings = ("", ".js", ".mjs", ".cjs", "/index.js")
            found = next((stem + end for end in endings if stem + end in self._paths), None)
            if found is None:
                return NOTHING
            self._program.importers[found].add(path)
            return Value(names=(f"file:{found}",))
        return Value(names=(name,)) if name and UNKNOWN not in name else NOTHING

    def _folded(self, call: Call) -> Value:
        names, method, owner, given = call.names, call.method, call.owner, call.given
        if method in ("items", "values", "entries") and owner.texts:
            return Value((tuple((text, text) if method != "values" else text for text in owner.texts),))
        if method == "format" and owner.consts:
            return merge(*(_braced(text, given) for text in owner.texts))
        if method == "join" and (given or owner.consts):
            return _text_of_list(owner, given)
        mapped = [one for one in given if one.functions]
        if mapped and (method == "map" or "map" in names):
            source = owner if method == "map" else given[-1]
            return self._each(source, lambda item: self._applied(mapped[0].functions[0], [item]))
        if "map" in names and len(given) > 1 and "chr" in given[0].names:
            return self._each(given[1], lambda item: constant(chr(item)) if isinstance(item, int) else NOTHING)
        functions = [FUNCTIONS[name] for name in names if name in FUNCTIONS]
        if functions:
            return _combined(functions[0], given)
        if method in METHODS and owner.consts:
            return _combined(METHODS[method], [Value(owner.consts), *given])
        return NOTHING

    def _applied(self, key: int, items: Sequence[Constant]) -> Value:
        function = self._program.functions[key]
        if len(function.returns) != 1 or not function.simple or self._depth >= MAX_DEPTH:
            return NOTHING
        self._depth += 1
        try:
            given = dict(zip(function.parameters, items, strict=False))
            return self._with(function.scope, given, function.returns[0])
        finally:
            self._depth -= 1

    def _called(self, call: Call) -> Value:
        """Hand arguments to the parameters of functions of the bundle, and return their results."""
        keys = list(call.function.functions)
        for name in call.function.names:
            if name.startswith("file:"):
                keys += self._of_file(name[5:], None).functions
            elif name.startswith("class:") and "__init__" in self._program.methods:
                keys.append(self._program.methods["__init__"])
        exact = [one.consts[0] for one in call.given if len(one.consts) == 1]
        results = []
        for key in keys[:MAX_NAMES]:
            called = self._program.functions[key]
            self._bind(call, called)
            self._steps += 1
            if exact and len(exact) == len(call.given) and self._steps < MAX_STEPS:
                results.append(self._applied(key, exact))
            results.append(call.stepped(called.result))
        return merge(*results)

    def _bind(self, call: Call, called: Function) -> None:
        positional, names = [self.of(call.scope, one) for one in call.node.args], called.parameters
        handed = [(name, call.stepped(value)) for name, value in zip(names, positional, strict=False)]
        handed += [(names[-1], carried(value)) for value in positional[len(names) :] if names]
        for keyword in call.node.keywords:
            if keyword.arg:
                handed.append((keyword.arg, call.stepped(self.of(call.scope, keyword.value))))
        for name, value in handed:
            self._note(called.scope, called.scope.add(name, value))

    def _hand_on(self, call: Call, result: Value) -> None:
        """Functions that are handed to a call get what it returns, and what it belongs to."""
        called = [key for one in call.given for key in one.functions]
        if not called:
            return
        kinds = merge(carried(result), carried(call.owner), *(carried(one) for one in call.given))
        if any(places.LISTENERS.match(name) for name in call.names):
            kinds = merge(kinds, call.tainted(places.INPUT))
        streams = Value(names=tuple(f"{name}()" for name in call.names if places.FETCHERS.match(name)))
        passed = merge(call.stepped(kinds), streams)
        for key in called[:MAX_NAMES]:
            function = self._program.functions[key]
            for parameter in function.parameters[:3]:
                self._note(function.scope, function.scope.add(parameter, passed))

    # What a call returns

    def _data(self, call: Call) -> Value:
        """Return the kinds of data that the call returns."""
        method, owner, given = call.method, call.owner, call.given
        if set(call.names) & places.CLEANERS or method in places.CLEANING_METHODS:
            return NOTHING
        through = merge(*map(carried, given), carried(owner))
        # Only some calls write a key in another form: a method of its own, or a known function.
        of_own = owner.has(places.KEY) and method in places.KEY_METHODS
        is_known = method in ("concat", "format", "join") or not places.KEY_CARRIERS.isdisjoint(call.names)
        if not of_own and not is_known:
            through = carried(through, places.KEY)
        if method in places.CHILDREN or not places.PROCESSES.isdisjoint(call.names):
            through = carried(through, places.ENVIRONMENT)  # a child has it, and what it says is its own
        if owner.has(places.ENVIRONMENT) and method in ("get", "pop", "setdefault"):
            through = merge(*map(carried, given), carried(owner, places.ENVIRONMENT))
        if method in ("encrypt", "update", "encryptor") and owner.names and through.has("content"):
            through = merge(through, call.tainted(places.ENCRYPTED))
        kinds = [*_sources(call), *_read(call)]
        if call.object is not None and method in places.REQUEST_PARTS and is_request(call.object, owner):
            kinds.append(places.REQUEST)
        nodes = [node for one in call.node.args for node in ast.walk(one)] if method == "join" else []
        if any(isinstance(node, ast.Name) and node.id == "chr" for node in nodes):
            kinds.append(places.DECODED)
        temporary = NOTHING
        if any(name.startswith("tempfile.") for name in call.names):
            key = f"{UNKNOWN}{call.scope.path}:{call.node.lineno}"
            opens = any("TemporaryFile" in name for name in call.names)
            temporary = Value((key,), names=(f"opened:{key}",) if opens else ())
        return merge(*map(call.tainted, kinds), through, self._opened(call), temporary)

    def _opened(self, call: Call) -> Value:
        """Return an open file's names, and the kinds of data that were written to a file of that name."""
        names, of_path = set(call.names), call.method in ("read_text", "read_bytes", "open")
        if not names & (places.READERS | places.OPENERS) and not of_path:
            return NOTHING
        path = call.object if of_path and call.owner.consts else call.argument()
        keys = list(self._keys(call.scope, path, self.of(call.scope, path)))
        kept = merge(*(self._files.get(key, NOTHING) for key in keys))
        opens = names & places.OPENERS or call.method == "open"
        return merge(Value(names=tuple(f"opened:{key}" for key in keys) if opens else ()), carried(kept))

    # What a call keeps

    def _store(self, call: Call) -> None:
        """Note what the call puts into files and containers."""
        kinds = merge(*map(carried, call.given))
        if call.method in places.MUTATORS and kinds is not NOTHING and call.object is not None:
            read = kinds
            if call.method in ("write", "add", "file", "writestr"):
                read = merge(kinds, self._data(call._replace(owner=NOTHING)))
            self._assign(call.scope, call.object, carried(call.stepped(read)), local=False)
        for key, value in self._written(call):
            known = self._files.get(key, NOTHING)
            joint = merge(known, call.stepped(carried(value)))
            self._note(call.scope, (joint.kinds or {}).keys() != (known.kinds or {}).keys())
            self._files[key] = joint

    def _written(self, call: Call) -> Iterator[tuple[str, Value]]:  # noqa: C901 -- a branch for each way of writing
        """Yield (file, what is written to it)."""
        scope, method, owner, given = call.scope, call.method, call.owner, call.given
        names = set(call.names)

        def keys(number: int = 0) -> list[str]:
            return list(self._keys(scope, call.argument(number), given[number]))

        if method in ("write", "writelines", "writestr", "add", "end") and given:
            read = merge(*given, self._data(call._replace(owner=NOTHING)))
            yield from ((key, read) for key in _opened_keys(owner))
        elif method in ("write_bytes", "write_text") and given and call.object is not None:
            yield from ((key, given[0]) for key in self._keys(scope, call.object, owner))
        elif method == "save" and given and owner.kinds:
            yield from ((key, owner) for key in keys())
            self._assign(scope, call.argument() or call.node, carried(owner), local=False)
        elif method == "pipe" and given:
            yield from ((key, owner) for key in _opened_keys(given[0]))
        elif names & places.WRITERS and len(given) > 1:
            yield from ((key, given[1]) for key in keys())
        elif any(name.endswith((".copyfileobj", ".dump")) for name in names) and len(given) > 1:
            yield from ((key, given[0]) for key in _opened_keys(given[1]))
        elif any(name.endswith(("urlretrieve", "wget.download")) for name in names) and len(given) > 1:
            yield from ((key, call.tainted(places.FETCHED)) for key in keys(1))
        elif names & places.PROCESSES and given:
            fetched = call.tainted(places.FETCHED)
            for text in commands_of(given[0]):
                yield from ((_file(found[1]), fetched) for found in places.DOWNLOADS.finditer(text))
                yield from self._unpacked(text)
        elif "shutil.make_archive" in names and len(given) > 2:
            archived = self._data(call._replace(owner=NOTHING, given=[given[2]]))
            yield from ((f"{key}.zip", archived) for key in keys())
        elif len(given) > 1 and any(name.startswith(("shutil.", "os.re", "fs.re", "fs.cop")) for name in names):
            read = self._data(call._replace(owner=NOTHING, given=given[:1]))
            moved = merge(carried(given[0]), read, *(self._files.get(key, NOTHING) for key in keys()))
            yield from ((key, moved) for key in keys(1))

    def _unpacked(self, text: str) -> Iterator[tuple[str, Value]]:
        """Yield the folder into which a command unpacks an archive, with its content."""
        for found in places.UNPACKS.finditer(text):
            kept = self._files.get(_file(found["archive"]), NOTHING)
            if found["folder"] and kept is not NOTHING:
                yield f"{_file(found['folder']).rstrip('/')}/", kept

    def _keys(self, scope: Scope, node: ast.expr | None, value: Value) -> Iterator[str]:
        """Yield names under which a file is kept: its path, or else its variable."""
        texts = [text for text in value.texts if len(text.strip(UNKNOWN)) > 1][:MAX_FILES]
        yield from (_file(text) for text in texts)
        if not texts and isinstance(node, ast.Name | ast.Attribute):
            yield f"{scope.path}:{ast.dump(node)}"


def commands_of(value: Value) -> list[str]:
    """Return the command lines that a value may be: texts, and lists joined by spaces."""
    found = []
    for const in value.consts:
        if isinstance(const, tuple):
            found.append(" ".join(map(str, const)))
        elif isinstance(const, str):
            found.append(const)
    return found


def _sources(call: Call) -> Iterator[str]:
    """Yield the kinds of data that the call gets from outside of the bundle."""
    names, given = call.names, call.given
    known = set(names)
    # A browser's path without a host is of the app's own server.
    first = call.argument()
    first = first.values[0] if isinstance(first, ast.JoinedStr) and first.values else first
    is_own = isinstance(first, ast.Constant) and re.match(r"\.?/(?!/)", str(first.value)) is not None
    if not (is_own and known == {"fetch"}) and any(places.FETCHERS.match(name) for name in names):
        yield places.FETCHED
    if call.method in ("recv", "recvfrom", "recv_into"):
        yield places.RECEIVED
    # A function that is handed an address of the web and is named as one that reads it.
    of_web = bool(given) and any(places.ADDRESS_OF_WEB.match(text) for text in given[0].texts)
    if of_web and any(places.READS_ADDRESS.search(name) for name in names):
        yield places.FETCHED
    if any(places.CLOUD_KEYS.match(name) for name in names):
        yield places.SECRET
    if call.method == "on" and any(places.SOCKETS.match(name) for name in names):
        yield places.RECEIVED
    groups = (
        (places.USERS, places.USER),
        (places.HOSTS, places.HOST),
        (places.CAPTURES, places.INPUT),
        (places.CLIPBOARDS, places.CLIPBOARD),
        (places.INPUTS, places.REQUEST),
    )
    yield from (kind for group, kind in groups if known & group)
    if (known & places.DECODERS) or call.method == "decrypt" or (known == {"Buffer.from"} and len(given) > 1):
        yield places.DECODED
    if known & places.PROCESSES:
        commands = [text for one in given[:1] for text in (*one.texts, " ".join(one.texts))]
        if any(places.SEARCHES_SECRETS.search(text) for text in commands):
            yield places.SECRET
        if any(places.WHOAMI.search(text) for text in commands):
            yield places.USER
            yield places.HOST


def _read(call: Call) -> Iterator[str]:
    """Yield the kinds that reading or listing the named files gives."""
    names, method, owner, given = set(call.names), call.method, call.owner, call.given
    listed = bool(names & places.LISTERS) or (method in places.LIST_METHODS and bool(owner.consts))
    if not listed and not names & places.READERS and method not in places.READ_METHODS:
        return
    where = merge(*given[:1], Value(owner.consts, kinds=owner.kinds) if method else NOTHING)
    texts = where.texts
    secret = any(places.SECRET_FILES.search(text) for text in texts) or where.has(places.SECRET_PATH)
    if listed:
        patterns = [text for one in given for text in one.texts]
        yield places.LISTED_PATH
        if secret or any(places.SECRET_FILES.search(text) for text in patterns):
            yield places.SECRET_PATH
        if any(places.WIDE.match(text.partition("*")[0]) for text in texts):
            yield places.HOME_PATH
        return
    if secret or where.has(places.HOME_PATH):
        yield places.SECRET
    if where.has(places.LISTED_PATH):
        yield "content"
    if any(places.DOCUMENTS.search(text) for text in texts):
        yield places.DOCUMENT


def _opened_keys(value: Value) -> list[str]:
    return [name[7:] for name in value.names if name.startswith("opened:")]


def _file(text: str) -> str:
    return text.removeprefix("./").strip("'\"")


def _within(active: Collection[str], entries: Sequence[Entry]) -> Iterator[Entry]:
    """Yield the entries of these files; a scope comes first in each."""
    return (entry for entry in entries if entry[0].path in active)


def _combined(function: Callable[..., Constant], given: Sequence[Value]) -> Value:
    """Call a function with the constants: with each alternative of the first one."""
    if not given or not all(one.consts for one in given):
        return NOTHING
    rest = [one.consts[0] for one in given[1:]]
    found = [call_folded(function, [first, *rest]) for first in given[0].consts]
    return constant(*(one for one in found if one is not None), built=True)


def _text_of_list(owner: Value, given: Sequence[Value]) -> Value:
    """``between.join(list)`` of Python, ``list.join(between)`` of JavaScript."""
    between = next((one for one in owner.consts if isinstance(one, str)), None)
    lists = [one for value in given for one in value.consts if isinstance(one, tuple)]
    if not lists:
        lists = [one for one in owner.consts if isinstance(one, tuple)]
        between = next((text for value in given for text in value.texts), "," if not given else "")
    if between is None:
        return NOTHING
    plain = [[str(item) for item in one] for one in lists if all(isinstance(item, str | int) for item in one)]
    return constant(*(between.join(one) for one in plain if sum(map(len, one)) <= MAX_LENGTH), built=True)


def _braced(text: str, given: Sequence[Value]) -> Value:
    filled: list[Value] = []
    rest, number = text, 0
    while "{" in rest and "}" in rest and number <= len(given):
        before, _, rest = rest.partition("{")
        _, _, rest = rest.partition("}")
        filled += [constant(before), given[number] if number < len(given) else NOTHING]
        number += 1
    return joined([*filled, constant(rest)])
