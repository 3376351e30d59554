"""Rules on the flow of data: which kinds of it reach the network, a process, an evaluator or a file."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from . import places
from .effects import Effects, argument, commands_of
from .evaluation import normal
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


def follow(trees: Mapping[str, ast.Module]) -> Flows:
    """Follow the data through all files together."""
    flow = FlowRules(trees)
    flow.run()
    hits = sorted(flow.hits())
    return Flows(hits, sorted(flow.commands()))


class FlowRules(Effects):
    """Judges the calls."""

    def hits(self) -> set[FlowHit]:
        found = {FlowHit("MAL-hidden-name", path, line, ()) for path, line in self._hidden}
        for scope, node in self._program.calls:
            if isinstance(node, ast.Call):
                for rule, trace in self._judge(scope, node):
                    found.add(FlowHit(rule, scope.path, node.lineno, (*trace, (scope.path, node.lineno))))
        return _one_a_line(found)

    def commands(self) -> set[tuple[str, int, str]]:
        """Return the commands that do not stand in the code as they are, with their lines."""
        found = set()
        for scope, node in self._program.calls:
            if isinstance(node, ast.Call) and node.args and set(self.names_of(scope, node)) & places.PROCESSES:
                value = self.of(scope, node.args[0])
                found |= {(scope.path, node.lineno, text) for text in commands_of(value) if value.built}
        return found

    def _judge(self, scope: Scope, call: ast.Call) -> Iterator[tuple[str, Trace]]:
        names = [*dict.fromkeys(self.names_of(scope, call))]
        method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        owner = self.of(scope, call.func.value) if isinstance(call.func, ast.Attribute) else NOTHING
        given = self.arguments(scope, call)
        known, whole = set(names), merge(*given)
        if known & places.EVALUATORS or method == "_compile":
            yield from self._judge_evaluation(scope, call, known, given)
        if known & places.DESERIALIZERS and whole.has(places.FETCHED, places.RECEIVED):
            yield "RSK-fetched-deserialized", _trace(whole, places.FETCHED, places.RECEIVED)
        if known & places.PROCESSES and given:
            yield from self._judge_process(scope, call, given)
        if any(places.RESOLVERS.match(name) for name in names):
            yield from _judge_lookup(given[0] if given else NOTHING)
        if _sends(names, method):
            sent = merge(*self._sent(scope, call))
            yield from _judge_sending(merge(sent, carried(owner)) if method in ("write", "end") else sent)
            if sent.has(places.KEY) and any(places.SENDERS.match(name) for name in names):
                yield "RSK-key-sent", _trace(sent, places.KEY)
        if known & places.COPIES:
            yield from _judge_clipboard(whole)
        if method in ("replace", "replaceAll") and len(given) > 1:
            yield from _judge_replacing(given)
        yield from self._judge_writing(scope, call, names, method, owner, given)

    def _sent(self, scope: Scope, call: ast.Call) -> Iterator[Value]:
        """Yield the arguments, without those by which a request is signed or its connection made."""
        yield from (self.of(scope, one) for one in call.args)
        yield from (self.of(scope, one.value) for one in call.keywords if one.arg not in _OF_CONNECTION)

    def names_of(self, scope: Scope, call: ast.Call) -> Iterator[str]:
        yield from (normal(name) for name in self.of(scope, call.func).names)

    def _judge_evaluation(
        self, scope: Scope, call: ast.Call, names: set[str], given: Sequence[Value]
    ) -> Iterator[tuple[str, Trace]]:
        code = merge(*given)
        if names & places.ONLY_TEXT and (not given or given[0].functions):
            return
        loads = any(
            name.endswith(("run_path", "file_location", "CDLL", "LoadLibrary", "WinDLL", "dlopen")) for name in names
        )
        if loads and given:
            files = [
                self._files.get(key, NOTHING)
                for arg, one in zip(call.args, given, strict=False)
                for key in self._keys(scope, arg, one)
            ]
            code = merge(*files)
        rules = (
            (places.FETCHED, "MAL-fetched-executed"),
            (places.RECEIVED, "MAL-remote-commands"),
            (places.DECODED, "MAL-decoded-executed"),
            (places.DOCUMENT, "MAL-document-executed"),
        )
        for kind, rule in rules:
            # Sound apps evaluate a line of a list as an expression.
            if code.has(kind) and not (kind == places.DOCUMENT and names == {"eval"}):
                yield rule, _trace(code, kind)
                return

    def _judge_process(self, scope: Scope, call: ast.Call, given: Sequence[Value]) -> Iterator[tuple[str, Trace]]:
        first = given[0]
        commands = [*commands_of(first), *_spelled(first, given)]
        yield from _judge_program(self._program_of(scope, call, first))
        for key in list(self._files):
            named = len(key) > 3 or key.endswith("/")
            if named and self._files[key].has(places.FETCHED) and any(_runs(key, text) for text in commands):
                yield "MAL-fetched-executed", _trace(self._files[key], places.FETCHED)
        if any(places.SENDS.search(text) for text in commands) and first.has(*_OUT):
            yield "MAL-secrets-sent", _trace(first, *_OUT)
        for text in commands:
            yield from _judge_command(text, first, merge(*given))
            yield from self._judge_unpacking(text)
            if places.DESTROYS.search(text) and not _has_folder(call) and not places.GOES_TO_A_FOLDER.search(text):
                yield "MAL-destroys", ()
        composed = isinstance(argument(call), ast.JoinedStr | ast.BinOp | ast.List | ast.Tuple)
        if not composed and not any(UNKNOWN in text for text in commands):
            for kind, rule in ((places.RECEIVED, "MAL-remote-commands"), (places.FETCHED, "MAL-fetched-executed")):
                if first.has(kind):
                    yield rule, _trace(first, kind)

    def _judge_unpacking(self, text: str) -> Iterator[tuple[str, Trace]]:
        """Judge a command that unpacks a download and starts a program beside it."""
        for found in places.UNPACKS.finditer(text):
            archive = self._files.get(found["archive"].removeprefix("./"), NOTHING)
            if archive.has(places.FETCHED) and places.STARTS_BESIDE.search(found["rest"]):
                yield "MAL-fetched-executed", _trace(archive, places.FETCHED)

    def _program_of(self, scope: Scope, call: ast.Call, first: Value) -> Value:
        """Return what the file holds that is started, alone or as the script of an interpreter."""
        node = argument(call)
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

    def _judge_writing(
        self, scope: Scope, call: ast.Call, names: Sequence[str], method: str, owner: Value, given: Sequence[Value]
    ) -> Iterator[tuple[str, Trace]]:
        path, content = self._target(names, method, owner, given)
        modes = [text for one in given[1:2] for text in one.texts]
        opens = set(names) & places.OPENERS and any(mode[:1] in ("w", "a") for mode in modes)
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
        if set(names) & places.WRITERS and path.has(places.LISTED_PATH) and content.consts and not content.kinds:
            yield "MAL-destroys", _trace(path, places.LISTED_PATH)
        removes = set(names) & {
            "os.remove",
            "os.unlink",
            "shutil.rmtree",
            "fs.rmSync",
            "fs.unlinkSync",
            "fs.rm",
            "rimraf",
        }
        if (
            removes
            and given
            and (given[0].has(places.HOME_PATH) or any(places.WIDE.match(text) for text in given[0].texts))
        ):
            yield "MAL-destroys", _trace(given[0], places.HOME_PATH)

    def _target(self, names: Sequence[str], method: str, owner: Value, given: Sequence[Value]) -> tuple[Value, Value]:
        """Return (path, content) of a call that writes a file."""
        if set(names) & places.WRITERS and len(given) > 1:
            return given[0], given[1]
        if any(name.startswith(_COPIERS) for name in names) and len(given) > 1:
            return given[1], NOTHING
        if method in ("write_bytes", "write_text") and given:
            return owner, given[0]
        if method == "write" and given and any(name.startswith("opened:") for name in owner.names):
            return owner, given[0]
        return NOTHING, NOTHING


#: Functions that write their second argument from their first.
_COPIERS = ("shutil.copy", "shutil.move", "fs.copy", "asar.createPackage")
#: Arguments of a request that are not sent as data.
_OF_CONNECTION = frozenset({"auth", "cert", "verify", "proxies", "timeout"})
#: Kinds that have no business on the network.
_OUT = (places.SECRET, places.ENVIRONMENT, places.INPUT)


def _judge_program(program: Value) -> Iterator[tuple[str, Trace]]:
    """Judge what the file holds that is started."""
    for kind, rule in ((places.FETCHED, "MAL-fetched-executed"), (places.DECODED, "MAL-decoded-executed")):
        if program.has(kind):
            yield rule, _trace(program, kind)
            return


def _judge_command(text: str, command: Value, whole: Value) -> Iterator[tuple[str, Trace]]:
    if _sends_file(text):
        yield "MAL-secrets-sent", ()
    if places.LOOKS_UP.search(text) and command.has(*_OUT, places.USER, places.HOST):
        yield "MAL-data-in-dns", _trace(command, *_OUT, places.USER, places.HOST)
    if places.PUBLISHES.search(text) and whole.has(places.SECRET):
        yield "MAL-secrets-sent", _trace(whole, places.SECRET)
    if places.SCHEDULES.search(text):
        yield "RSK-persists", ()


def _judge_sending(data: Value) -> Iterator[tuple[str, Trace]]:
    rules = (
        (places.SECRET, "MAL-secrets-sent"),
        (places.ENVIRONMENT, "MAL-environment-sent"),
        (places.INPUT, "MAL-input-sent"),
        (places.CLIPBOARD, "MAL-input-sent"),
    )
    for kind, rule in rules:
        if data.has(kind):
            yield rule, _trace(data, kind)
            return
    if data.has(places.USER) and data.has(places.HOST):
        yield "RSK-host-sent", _trace(data, places.USER)


def _judge_lookup(name: Value) -> Iterator[tuple[str, Trace]]:
    """Judge a name to be looked up: one of the app's data and a domain carries that data away."""
    composed = any(UNKNOWN in text and "." in text.strip(UNKNOWN) for text in name.texts)
    kinds = (*_OUT, places.USER, places.HOST, places.CLIPBOARD)
    if composed and name.has(*kinds):
        yield "MAL-data-in-dns", _trace(name, *kinds)


def _judge_clipboard(copied: Value) -> Iterator[tuple[str, Trace]]:
    if any(places.ADDRESS.match(text) for text in copied.texts):
        yield "MAL-address-replaced", ()


def _judge_replacing(given: Sequence[Value]) -> Iterator[tuple[str, Trace]]:
    looked_for = any(places.WALLET.search(text) for text in given[0].texts)
    if looked_for and any(places.ADDRESS.match(text) for text in given[1].texts):
        yield "MAL-address-replaced", ()


def _sends(names: Iterable[str], method: str) -> bool:
    if method in places.SEND_METHODS:
        return True
    return any(places.SENDERS.match(name) or places.STREAMS.search(name) for name in names)


def _sends_file(command: str) -> bool:
    """Return True for ``curl -F f=@~/.ssh/id_rsa``, ``cat ~/.aws/credentials | nc …``."""
    if not places.SENDS.search(command):
        return False
    words = command.replace("@", " ").replace("=", " ").replace("$(", " ").replace("<", " ").replace(")", " ").split()
    keys = {after for before, after in pairwise(words) if before in ("-i", "--key", "--cert", "-E")}
    return any(places.SECRET_FILES.search(word.strip("'\"`")) and word not in keys for word in words)


def _spelled(first: Value, given: Sequence[Value]) -> list[str]:
    """Return commands whose arguments are a list of their own: ``spawn("sh", ["-c", "…"])``."""
    lists = [one for value in given[1:2] for one in value.consts if isinstance(one, tuple)]
    programs = [one for one in first.consts if isinstance(one, str)]
    return [" ".join((program, *map(str, words))) for program in programs for words in lists]


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
    return text.rpartition("/")[2].rstrip("0123456789.") in (
        "sh",
        "bash",
        "zsh",
        "dash",
        "python",
        "node",
        "perl",
        "ruby",
        "chmod",
        "sudo",
        "nohup",
        "powershell",
        "cmd",
        "wine",
    )


def _trace(value: Value, *kinds: str) -> Trace:
    return next((value.kinds[kind] for kind in kinds if value.kinds and kind in value.kinds), ())


def _one_a_line(hits: Iterable[FlowHit]) -> set[FlowHit]:
    best: dict[tuple[str, str, int], FlowHit] = {}
    for hit in sorted(hits, key=lambda hit: (len(hit.trace), hit.trace)):
        best.setdefault((hit.rule, hit.path, hit.line), hit)
    return set(best.values())
