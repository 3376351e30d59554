"""Rules on the flow of data: which kinds of it reach the network, a process, an evaluator or a file."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from . import places
from .evaluation import PASSES, normal
from .flow import Call, Flow, commands_of
from .program import Scope
from .values import NOTHING, UNKNOWN, Trace, Value, carried, merge


class FlowHit(NamedTuple):
    """``trace``: steps (path, line) from the source to the sink, which is where the hit is."""

    rule: str
    path: str
    line: int
    trace: Trace


class Flows(NamedTuple):
    """``commands``: (path, line, text) of commands that are put together from constants."""

    hits: list[FlowHit]
    commands: list[tuple[str, int, str]]


def follow(trees: Mapping[str, ast.Module], passes: int = PASSES) -> Flows:
    """Follow the data through all files together."""
    flow = FlowRules(trees)
    flow.run(passes)
    return Flows(sorted(flow.hits()), sorted(flow.commands()))


class FlowRules(Flow):
    """Judges the calls."""

    def hits(self) -> set[FlowHit]:
        calls = [(scope, node) for scope, node in self._program.calls if isinstance(node, ast.Call)]
        #: Lines of the calls in each file, by the function's name, and of methods by theirs.
        self._lines: dict[str, dict[str, int]] = {path: {} for path in self._paths}
        for scope, call in calls:
            method = (f".{call.func.attr}",) if isinstance(call.func, ast.Attribute) else ()
            for name in (*self.names_of(scope, call), *method):
                self._lines[scope.path].setdefault(name, call.lineno)
        found = {FlowHit("MAL-hidden-name", path, line, ()) for path, line in self._hidden}
        for scope, call in calls:
            for rule, trace in self._judge(scope, call):
                found.add(FlowHit(rule, scope.path, call.lineno, (*trace, (scope.path, call.lineno))))
        for path, called in self._lines.items():
            found |= {FlowHit(rule, path, line, ()) for rule, line in _judge_file(path, called)}
        for scope, loop in self._program.whiles:
            inside = list(ast.walk(loop))
            is_endless = isinstance(loop.test, ast.Constant) and bool(loop.test.value) and len(loop.body) <= 2
            ends = any(isinstance(node, ast.Break | ast.If) for node in inside)
            forks = any(isinstance(node, ast.Call) and "os.fork" in self.names_of(scope, node) for node in inside)
            if is_endless and forks and not ends:
                found.add(FlowHit("MAL-fork-bomb", scope.path, loop.lineno, ()))
        # Of several ways of the data to one line, the shortest is reported.
        best: dict[tuple[str, str, int], FlowHit] = {}
        for hit in sorted(found, key=lambda hit: (len(hit.trace), hit.trace)):
            best.setdefault((hit.rule, hit.path, hit.line), hit)
        return set(best.values())

    def commands(self) -> set[tuple[str, int, str]]:
        """Return the command lines that processes get, as far as they are known."""
        found = set()
        for scope, node in self._program.calls:
            if isinstance(node, ast.Call) and node.args and set(self.names_of(scope, node)) & places.PROCESSES:
                value = self.of(scope, node.args[0])
                found |= {(scope.path, node.lineno, text) for text in commands_of(value)}
        return found

    def _judge(self, scope: Scope, node: ast.Call) -> Iterator[tuple[str, Trace]]:
        call = self.read_call(scope, node)
        names, method, given = set(call.names), call.method, call.given
        whole = merge(*given)
        if names & places.EVALUATORS or method == "_compile":
            yield from self._judge_evaluation(call)
        if names & places.DESERIALIZERS and whole.has(places.FETCHED, places.RECEIVED):
            yield "RSK-fetched-deserialized", _trace(whole, places.FETCHED, places.RECEIVED)
        if names & places.PROCESSES and given:
            yield from self._judge_process(call)
            yield from self._judge_shell(call)
        if node.args:
            yield from _judge_first(call)
        if given and any(places.RESOLVERS.match(name) for name in names):
            # A name of the app's data and a domain carries that data away.
            composed = any(UNKNOWN in text and "." in text.strip(UNKNOWN) for text in given[0].texts)
            kinds = (*_OUT, places.USER, places.HOST, places.CLIPBOARD)
            if composed and given[0].has(*kinds):
                yield "MAL-data-in-dns", _trace(given[0], *kinds)
        sends = any(places.SENDERS.match(name) or places.STREAMS.search(name) for name in names)
        if sends or method in places.SEND_METHODS:
            # Not the arguments by which a request is signed or its connection made.
            keywords = [one.value for one in node.keywords if one.arg not in _OF_CONNECTION]
            sent = merge(*(self.of(scope, one) for one in (*node.args, *keywords)))
            data = _sent_by(call, sent)
            host = {places.USER: "RSK-host-sent"} if data.has(places.USER) and data.has(places.HOST) else {}
            yield from _first_of(data, {**_SENT, **host})
            if sent.has(places.KEY) and any(places.SENDERS.match(name) for name in names):
                yield "RSK-key-sent", _trace(sent, places.KEY)
        if _replaces_address(call):
            yield "MAL-address-replaced", ()
        yield from self._judge_writing(call)

    def names_of(self, scope: Scope, call: ast.Call) -> Iterator[str]:
        yield from (normal(name) for name in self.of(scope, call.func).names)

    def _judge_evaluation(self, call: Call) -> Iterator[tuple[str, Trace]]:
        names, given = set(call.names), call.given
        code = merge(*given)
        if names & places.ONLY_TEXT and (not given or given[0].functions):
            return
        loaders = ("run_path", "file_location", "CDLL", "LoadLibrary", "WinDLL", "dlopen")
        if given and any(name.endswith(loaders) for name in names):
            named = zip(call.node.args, given, strict=False)
            keys = [key for argument, one in named for key in self._keys(call.scope, argument, one)]
            code = merge(*(self._files.get(key, NOTHING) for key in keys))
        rules = {
            places.FETCHED: "MAL-fetched-executed",
            places.RECEIVED: "MAL-remote-commands",
            places.DECODED: "MAL-decoded-executed",
            places.DOCUMENT: "MAL-document-executed",
            places.REQUEST: "RSK-request-evaluated",
        }
        if names == {"eval"}:
            del rules[places.DOCUMENT]  # sound apps evaluate a line of a list as an expression
        yield from _first_of(code, rules)

    def _judge_process(self, call: Call) -> Iterator[tuple[str, Trace]]:
        first = call.given[0]
        # Of ``spawn("sh", ["-c", "…"])`` the arguments are a list of their own.
        lists = [one for value in call.given[1:2] for one in value.consts if isinstance(one, tuple)]
        programs = [one for one in first.consts if isinstance(one, str)]
        spelled = [" ".join((program, *map(str, words))) for program in programs for words in lists]
        commands = [*commands_of(first), *spelled]
        rules = {places.FETCHED: "MAL-fetched-executed", places.DECODED: "MAL-decoded-executed"}
        yield from _first_of(self._program_of(call), rules)
        for key in list(self._files):
            named = len(key) > 3 or key.endswith("/")
            if named and self._files[key].has(places.FETCHED) and any(_runs(key, text) for text in commands):
                yield "MAL-fetched-executed", _trace(self._files[key], places.FETCHED)
        if any(places.SENDS.search(text) for text in commands) and first.has(*_OUT):
            yield "MAL-secrets-sent", _trace(first, *_OUT)
        for text in commands:
            yield from _judge_command(text, first, merge(*call.given))
            yield from self._judge_unpacking(text)
            if places.DESTROYS.search(text) and not _has_folder(call.node) and not places.GOES_TO_A_FOLDER.search(text):
                yield "MAL-destroys", ()
        composed = isinstance(call.argument(), ast.JoinedStr | ast.BinOp | ast.List | ast.Tuple)
        if not composed and not any(UNKNOWN in text for text in commands):
            for kind, rule in ((places.RECEIVED, "MAL-remote-commands"), (places.FETCHED, "MAL-fetched-executed")):
                if first.has(kind):
                    yield rule, _trace(first, kind)

    def _judge_shell(self, call: Call) -> Iterator[tuple[str, Trace]]:
        """Judge data in a command, for a shell where that matters, and a shell that has a connection's descriptors."""
        command, called, keywords = call.argument(), self._lines[call.scope.path], call.node.keywords
        if command is None:
            return
        words = command.elts if isinstance(command, ast.List | ast.Tuple) else []
        # Of a list the program, its option and its script.
        data = merge(*(self.of(call.scope, one) for one in (words[:3] or [command])))
        opens_socket = not _SOCKETS.isdisjoint(called)
        if data.has(places.RECEIVED) and opens_socket:
            yield "MAL-remote-commands", _trace(data, places.RECEIVED)
        piped = [one.value for one in keywords if one.arg in ("stdin", "stdout", "stderr")]
        handed = any(getattr(getattr(one, "func", None), "attr", "") == "fileno" for one in piped)
        if handed and opens_socket and ".connect" in called:
            yield "MAL-reverse-shell", ()
        names_shell = any(one.arg == "shell" and getattr(one.value, "value", True) for one in keywords)
        first = words[0] if words else None
        starts_interpreter = isinstance(first, ast.Attribute) and first.attr == "executable"
        if isinstance(first, ast.Constant) and isinstance(first.value, str):
            starts_interpreter = _is_interpreter(first.value)
        if not (set(call.names) & places.SHELLS or names_shell or starts_interpreter):
            return
        fetched = "RSK-fetched-in-command" if isinstance(command, ast.JoinedStr | ast.BinOp) else "MAL-fetched-executed"
        rules = (
            (places.DECODED, "MAL-decoded-executed"),
            (places.FETCHED, fetched),
            (places.REQUEST, "RSK-request-in-shell"),
        )
        yield from ((rule, _trace(data, kind)) for kind, rule in rules if data.has(kind))

    def _judge_unpacking(self, text: str) -> Iterator[tuple[str, Trace]]:
        """Judge a command that unpacks a download and starts a program beside it."""
        for found in places.UNPACKS.finditer(text):
            archive = self._files.get(found["archive"].removeprefix("./"), NOTHING)
            if archive.has(places.FETCHED) and places.STARTS_BESIDE.search(found["rest"]):
                yield "MAL-fetched-executed", _trace(archive, places.FETCHED)

    def _program_of(self, call: Call) -> Value:
        """Return the content of the file that is started, alone or as the script of an interpreter."""
        scope, node = call.scope, call.argument()
        heads: list[ast.expr] = [node] if node is not None else []
        if isinstance(node, ast.List | ast.Tuple):
            heads = list(node.elts[:1])
            name = self.of(scope, heads[0]).texts if heads else ()
            interpreted = not name or any(_is_interpreter(text) for text in name)
            heads = list(node.elts[: 3 if interpreted else 1])
        found = []
        for head in heads:
            value = self.of(scope, head)
            found += [self._files.get(key, NOTHING) for key in self._keys(scope, head, value)]
        return merge(*found)

    def _judge_writing(self, call: Call) -> Iterator[tuple[str, Trace]]:
        names, method, owner, given = set(call.names), call.method, call.owner, call.given
        path, content = _target(call)
        modes = [text for one in given[1:2] for text in one.texts]
        opens = names & places.OPENERS and any(mode[:1] in ("w", "a") for mode in modes)
        writes = content is not NOTHING or path is not NOTHING
        where = given[0] if opens and given else path
        if method == "CreateShortcut" and given:
            where, writes = given[0], True
        if (opens or writes) and any(places.START_FILES.search(text) for text in where.texts):
            yield "RSK-persists", ()
        if content.has(places.ENCRYPTED) and content.has("content") and path.has(places.HOME_PATH):
            yield "MAL-encrypts-files", _trace(content, places.ENCRYPTED)
        elif method in ("write", "write_bytes") and merge(*given).has(places.ENCRYPTED) and owner.has(places.HOME_PATH):
            yield "MAL-encrypts-files", _trace(merge(*given), places.ENCRYPTED)
        if names & places.WRITERS and path.has(places.LISTED_PATH) and content.consts and not content.kinds:
            yield "MAL-destroys", _trace(path, places.LISTED_PATH)
        if "shutil.rmtree" in names and given and "/" in given[0].texts:
            yield "MAL-destroys", ()
        wide = given and (given[0].has(places.HOME_PATH) or any(places.WIDE.match(text) for text in given[0].texts))
        if wide and names & places.REMOVERS:
            yield "MAL-destroys", _trace(given[0], places.HOME_PATH)


#: Functions that write their second argument from their first.
_COPIERS = ("shutil.copy", "shutil.move", "fs.copy", "asar.createPackage")
#: Arguments of a request that are not sent as data.
_OF_CONNECTION = frozenset({"auth", "cert", "verify", "proxies", "timeout"})
#: Kinds that have no business on the network.
_OUT = (places.SECRET, places.ENVIRONMENT, places.INPUT)
#: Rules for what is sent.
_SENT = {
    places.SECRET: "MAL-secrets-sent",
    places.ENVIRONMENT: "MAL-environment-sent",
    places.INPUT: "MAL-input-sent",
    places.CLIPBOARD: "MAL-input-sent",
}
#: Functions that make a socket.
_SOCKETS = frozenset({"socket.socket", "socket.create_connection"})


def _sent_by(call: Call, sent: Value) -> Value:
    if call.method in ("write", "end"):
        return merge(sent, carried(call.owner))
    # An answer shows the environment to the visitor, and sends it to no third party.
    is_answer = call.method == "send" and _is_answer(call.object) and not call.owner.names
    return carried(sent, places.ENVIRONMENT) if is_answer else sent


def _is_answer(node: ast.expr | None) -> bool:
    """Return True for a handler's response, also behind calls that return it: ``res.status(200)``."""
    while isinstance(node, ast.Call | ast.Attribute):
        node = node.func if isinstance(node, ast.Call) else node.value
    return isinstance(node, ast.Name) and node.id in places.ANSWERS


def _target(call: Call) -> tuple[Value, Value]:
    """Return (path, content) of a call that writes a file."""
    names, method, owner, given = call.names, call.method, call.owner, call.given
    if set(names) & places.WRITERS and len(given) > 1:
        return given[0], given[1]
    if any(name.startswith(_COPIERS) for name in names) and len(given) > 1:
        return given[1], NOTHING
    if method in ("write_bytes", "write_text") and given:
        return owner, given[0]
    if method == "write" and given and any(name.startswith("opened:") for name in owner.names):
        return owner, given[0]
    return NOTHING, NOTHING


def _judge_file(path: str, called: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """Yield (rule, line) of the rules that need several calls of one file."""
    runs = places.PROCESSES & called.keys()
    connects = {".connect", ".accept", "socket.create_connection"} & called.keys()
    if "os.dup2" in called and connects and runs and _SOCKETS & called.keys():
        yield "MAL-reverse-shell", called["os.dup2"]
    fetches = [line for name, line in called.items() if places.FETCHERS.match(name)]
    if path.rpartition("/")[2] == "setup.py" and fetches and (runs or places.EVALUATORS & called.keys()):
        yield "MAL-install-hook", min(fetches)


def _judge_first(call: Call) -> Iterator[tuple[str, Trace]]:
    """Judge SQL and data of a request as a call's first argument."""
    names, method, first = set(call.names), call.method, call.given[0]
    if method in ("execute", "executemany", "executescript", "raw") and _is_built(call.node.args[0]):
        yield "INJ-sql", ()
    if not first.has(places.REQUEST):
        return
    if names & places.TEMPLATES or method == "from_string":
        yield "RSK-request-template", _trace(first, places.REQUEST)
    if names & {"open", "flask.send_file"}:
        yield "INJ-path", _trace(first, places.REQUEST)


def _is_built(node: ast.expr) -> bool:
    """Return True for a text that is put together from parts, of which not all are plain text."""
    match node:
        case ast.JoinedStr():
            return any(isinstance(value, ast.FormattedValue) for value in node.values)
        case ast.BinOp(op=ast.Add() | ast.Mod()):
            parts = list(ast.walk(node))
            has_text = any(isinstance(part, ast.Constant | ast.JoinedStr) for part in parts)
            return has_text and any(isinstance(part, ast.Name | ast.Call) for part in parts)
        case ast.Call(func=ast.Attribute(attr="format", value=ast.Constant())):
            return True
    return False


def _judge_command(text: str, command: Value, whole: Value) -> Iterator[tuple[str, Trace]]:
    if places.LOOKS_UP.search(text) and command.has(*_OUT, places.USER, places.HOST):
        yield "MAL-data-in-dns", _trace(command, *_OUT, places.USER, places.HOST)
    if places.PUBLISHES.search(text) and whole.has(places.SECRET):
        yield "MAL-secrets-sent", _trace(whole, places.SECRET)


def _has_folder(call: ast.Call) -> bool:
    """Return True if the call names the folder in which the command runs."""
    fields = [key for one in call.args if isinstance(one, ast.Dict) for key in one.keys]
    return any(one.arg == "cwd" for one in call.keywords) or any(
        isinstance(key, ast.Constant) and key.value == "cwd" for key in fields
    )


def _runs(file: str, command: str) -> bool:
    """Return True if the command starts the file: as its program, or by an interpreter."""
    name = re.escape(file) + (r"[^\s;&|)'\"]+" if file.endswith("/") else "")
    return (
        re.search(
            rf"(?:^|[;&|(`]\s*|\b{places.INTERPRETERS}\s+(?:-\S+\s+)*)['\"]?(?:\./)?{name}(?:['\"\s;&|)]|$)", command
        )
        is not None
    )


def _is_interpreter(text: str) -> bool:
    return text.rpartition("/")[2].rstrip("0123456789.") in places.INTERPRETER_NAMES


def _replaces_address(call: Call) -> bool:
    """Return True if a wallet's address is copied, or replaces another one."""
    method, given = call.method, call.given
    written = merge(*given).texts if set(call.names) & places.COPIES else ()
    if method in ("replace", "replaceAll") and len(given) > 1:
        written += given[1].texts if any(places.WALLET.search(text) for text in given[0].texts) else ()
    return any(places.ADDRESS.match(text) for text in written)


def _first_of(value: Value, rules: Mapping[str, str]) -> Iterator[tuple[str, Trace]]:
    """Yield the rule of the first kind that the value has."""
    found = next((kind for kind in rules if value.has(kind)), None)
    if found is not None:
        yield rules[found], _trace(value, found)


def _trace(value: Value, *kinds: str) -> Trace:
    return next((value.kinds[kind] for kind in kinds if value.kinds and kind in value.kinds), ())
