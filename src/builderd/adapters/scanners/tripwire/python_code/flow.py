"""Flow of data through a bundle: what assignments, calls and returns hand on.

Each name holds all values that it is ever given, without regard to the order of statements. Some passes over all
assignments, calls and returns find them, in all files of the bundle together.
"""

from __future__ import annotations

import ast
import posixpath
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, TypeVar

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
            if function.scope.path in active:
                self._return(function)

    def _note(self, scope: Scope, is_new: bool) -> None:
        if is_new:
            self._changed.add(scope.path)

    def _return(self, function: Function) -> None:
        result = merge(*(self.of(function.scope, value) for value in function.returns))
        if not same(result, function.result):
            joint = merge(function.result, result)
            self._note(function.scope, not same(joint, function.result))
            function.result = joint

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

    def arguments(self, scope: Scope, call: ast.Call) -> list[Value]:
        return [self.of(scope, one) for one in (*call.args, *(keyword.value for keyword in call.keywords))]

    def _call(self, scope: Scope, call: ast.Call) -> Value:
        function = self.of(scope, call.func)
        names = [normal(name) for name in function.names]
        given = self.arguments(scope, call)
        method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        owner = self.of(scope, call.func.value) if isinstance(call.func, ast.Attribute) else NOTHING
        led = self._led_to(scope, call, names, given)
        result = merge(
            led,
            self._folded(call, names, method, owner, given),
            self._called(scope, call, function, given),
            self._data(scope, call, names, method, owner, given),
            Value(
                names=tuple(f"{name}()" for name in names if len(name) < MAX_NAME and not name.startswith(REFERENCES))
            ),
        )
        self._store(scope, call, names, method, owner, given)
        self._hand_on(scope, call, names, owner, given, result)
        return result

    def _led_to(self, scope: Scope, call: ast.Call, names: Sequence[str], given: Sequence[Value]) -> Value:
        """Return what names in texts lead to: ``getattr``, imports, and functions that return their argument."""
        if not given:
            if any(name in ("process.cwd", "os.getcwd", "pathlib.Path.cwd") for name in names):
                return constant(".")
            return constant("~") if any(name in ("pathlib.Path.home", "os.homedir") for name in names) else NOTHING
        if any(name in places.IMPORTS for name in names):
            return merge(*(self._imported(scope, call, text, given[0].built) for text in given[0].texts[:MAX_NAMES]))
        if "getattr" in names and len(given) > 1:
            return merge(*(self._named(scope, given[0], text, given[1].built, call) for text in given[1].texts))
        if any(name in places.JOINERS for name in names):
            return joined(given, "/")
        if any(name in ("os.getenv", "os.environ.get") for name in names) and set(given[0].texts) & places.HOMES:
            return constant("~")
        if any(name in PASSED for name in names):
            return joined(given, "/") if len(given) > 1 and "pathlib.Path" in names else given[0]
        if isinstance(call.func, ast.Attribute) and call.func.attr == "joinpath":
            return joined([self.of(scope, call.func.value), *given], "/")
        return NOTHING

    def _imported(self, scope: Scope, call: ast.Call, text: str, built: bool) -> Value:
        name = text.removeprefix("node:")
        if built and name in places.DANGEROUS:
            self._hidden.add((scope.path, call.lineno))
        if name.startswith("."):
            stem = posixpath.normpath(posixpath.join(posixpath.dirname(scope.path), name))
            found = [
                f"{stem}{end}" for end in ("", ".js", ".mjs", ".cjs", "/index.js") if f"{stem}{end}" in self._paths
            ]
            if not found:
                return NOTHING
            self._program.importers[found[0]].add(scope.path)
            return Value(names=(f"file:{found[0]}",))
        return Value(names=(name,)) if name and UNKNOWN not in name else NOTHING

    def _folded(self, call: ast.Call, names: Sequence[str], method: str, owner: Value, given: Sequence[Value]) -> Value:
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

    def _called(self, scope: Scope, call: ast.Call, function: Value, given: Sequence[Value]) -> Value:
        """Hand arguments to the parameters of functions of the bundle, and return their results."""
        keys = list(function.functions)
        for name in function.names:
            if name.startswith("file:"):
                keys += self._of_file(name[5:], None).functions
            elif name.startswith("class:") and "__init__" in self._program.methods:
                keys.append(self._program.methods["__init__"])
        exact = [one.consts[0] for one in given if len(one.consts) == 1]
        results = []
        for key in keys[:MAX_NAMES]:
            called = self._program.functions[key]
            self._bind(scope, call, called)
            self._steps += 1
            if exact and len(exact) == len(given) and self._steps < MAX_STEPS:
                results.append(self._applied(key, exact))
            results.append(stepped(called.result, scope.path, call.lineno))
        return merge(*results)

    def _bind(self, scope: Scope, call: ast.Call, called: Function) -> None:
        for parameter, value in zip(called.parameters, call.args, strict=False):
            self._note(
                called.scope, called.scope.add(parameter, stepped(self.of(scope, value), scope.path, call.lineno))
            )
        extra = call.args[len(called.parameters) :]
        for value in extra if called.parameters else ():
            self._note(called.scope, called.scope.add(called.parameters[-1], carried(self.of(scope, value))))
        for keyword in call.keywords:
            if keyword.arg:
                self._note(
                    called.scope,
                    called.scope.add(keyword.arg, stepped(self.of(scope, keyword.value), scope.path, call.lineno)),
                )

    def _data(
        self, scope: Scope, call: ast.Call, names: Sequence[str], method: str, owner: Value, given: Sequence[Value]
    ) -> Value:
        """Return the kinds of data that the call returns."""
        raise NotImplementedError

    def _store(
        self, scope: Scope, call: ast.Call, names: Sequence[str], method: str, owner: Value, given: Sequence[Value]
    ) -> None:
        """Note what the call puts into files and containers."""
        raise NotImplementedError

    def _hand_on(
        self, scope: Scope, call: ast.Call, names: Sequence[str], owner: Value, given: Sequence[Value], result: Value
    ) -> None:
        """Functions that are handed to a call get what it returns, and what it belongs to."""
        called = [key for one in given for key in one.functions]
        if not called:
            return
        kinds = merge(carried(result), carried(owner), *(carried(one) for one in given))
        if any(places.LISTENERS.match(name) for name in names):
            kinds = merge(kinds, tainted(places.INPUT, scope.path, call.lineno))
        passed = stepped(kinds, scope.path, call.lineno)
        streams = Value(names=tuple(f"{name}()" for name in names if places.FETCHERS.match(name)))
        for key in called[:MAX_NAMES]:
            function = self._program.functions[key]
            for parameter in function.parameters[:3]:
                self._note(function.scope, function.scope.add(parameter, merge(passed, streams)))


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
