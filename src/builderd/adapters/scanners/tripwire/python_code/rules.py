"""The rules: dangerous calls that untrusted data reaches, and suspicious combinations of calls."""

from __future__ import annotations

import ast
from collections.abc import Collection
from typing import Any

from .facts import Facts, Scope
from .names import (
    DECODED,
    ENVIRON,
    EVALUATORS,
    FETCHED,
    FETCHERS,
    PROCESSES,
    RECEIVED,
    REQUEST,
    SEND_METHODS,
    SENDERS,
    SHELLS,
    TEMPLATES,
    Kinds,
)
from .syntax import is_built, starts_interpreter


class Rules(Facts):
    """Matches the rules on the facts of one file."""

    def seen(self) -> dict[str, Any]:
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
            self._hit_if(is_built(call.args[0]), "INJ-sql", call)
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
        kinds = self._union(scope, _code_of(command))
        through_shell = self._is_shell(call, name) or starts_interpreter(command)
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
        shell_values = [k.value for k in call.keywords if k.arg == "shell"]
        return name in SHELLS or name.endswith("_shell") or any(getattr(value, "value", True) for value in shell_values)

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


def _code_of(command: ast.expr) -> list[ast.expr]:
    """Return what may be code in a command: all of a text; of a list the program, its option and its script."""
    return command.elts[:3] if isinstance(command, ast.List | ast.Tuple) else [command]
