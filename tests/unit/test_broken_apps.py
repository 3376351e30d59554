"""Messages for broken apps: each names the cause and the change that mends it.

The table of the ways in which apps fail. It runs on the pure functions that make the messages; that they are called in
the right place is shown by the tests of the stages.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest
from tests.acceptance.test_broken_apps import BROKEN

from builderd.adapters.installers.npm import NpmInstaller
from builderd.adapters.installers.uv import UvInstaller
from builderd.adapters.scanners.tripwire import python_code
from builderd.domain.bundles import Bundle, BundleFile, make_bundle
from builderd.domain.errors import InstallFailed
from builderd.domain.failures import exited_early, not_listening
from builderd.domain.hints import start_hint, unread_notes
from builderd.domain.ids import TenantId
from builderd.domain.qa import Visit, check_answer
from builderd.domain.resources import Resources
from builderd.domain.sandboxes import EndCause, Listening, SandboxEnd

RESOURCES = Resources(0.5, 1, 3)
PACKAGE = json.dumps({"dependencies": {}, "devDependencies": {"vite": "7"}})
TEMPLATE = "name = 'a'\nprint(t'hello {name}')\n"


def bundle_of(files: Mapping[str, str]) -> Bundle:
    return make_bundle(BundleFile(path, text.encode()) for path, text in files.items())


def listens(*sockets: tuple[str, int]) -> str:
    return not_listening(Listening(frozenset(sockets)), 8000, 60, ["started"])


def ended(line: str, code: int = 1, **files: str) -> str:
    """Message of an app that wrote this line and exited."""
    bundle = bundle_of({name.replace("__", "/").replace("_", "."): text for name, text in files.items()})
    end = SandboxEnd(EndCause.EXITED, code, None)
    return exited_early(end, RESOURCES, 8000, [line], start_hint([line], bundle))


def killed() -> str:
    return exited_early(SandboxEnd(EndCause.OUT_OF_MEMORY, None, None), RESOURCES, 8000, [])


def refused(**files: str) -> str:
    """Message of an install whose manifest cannot be read."""
    bundle = bundle_of({name.replace("_", "."): text for name, text in files.items()})
    try:
        UvInstaller("1").plan(bundle, "base", TenantId("t"))
        NpmInstaller().plan(bundle, "base", TenantId("t"))
    except InstallFailed as failure:
        return failure.message
    return ""


def answered(status: int | None, fault: str = "") -> str:
    return check_answer(Visit(status, 0.1, fault), "/", ["Traceback"]).message


def scanned(text: str) -> str:
    return str(python_code.analyse(text.encode(), "app.py", ["app.py"])["error"])


@dataclass(frozen=True)
class Case:
    message: Callable[[], str]
    cause: str
    change: str


CASES = {
    "no port": Case(listens, "did not listen on 0.0.0.0:8000 within 60 seconds", '"job_type": "worker"'),
    "slow import": Case(listens, "within 60 seconds", 'set "start_timeout"'),
    "another port": Case(lambda: listens(("0.0.0.0", 5000)), "listens on port 5000", 'set "port" to 5000'),
    "127.0.0.1": Case(lambda: listens(("127.0.0.1", 8000)), "127.0.0.1:8000", "bind it to 0.0.0.0:8000"),
    "IPv6 loopback": Case(lambda: listens(("::1", 8000)), "[::1]:8000", "bind it to 0.0.0.0:8000"),
    "a missing module": Case(
        lambda: ended("ModuleNotFoundError: No module named 'flask'", requirements_txt=""),
        "module flask is missing",
        "add flask to requirements.txt",
    ),
    "a module of another name": Case(
        lambda: ended("ModuleNotFoundError: No module named 'yaml'"), "module yaml", "add pyyaml to requirements.txt"
    ),
    "a module in a subfolder": Case(
        lambda: ended("ModuleNotFoundError: No module named 'lib'", src__lib_py="1"), "folder src", "cd src"
    ),
    "a devDependency": Case(
        lambda: ended("sh: 1: vite: not found", 127, package_json=PACKAGE), "devDependencies", "move it to dependencies"
    ),
    "a missing Node package": Case(
        lambda: ended("Error: Cannot find module 'express'", package_json="{}"), "express", "package.json"
    ),
    "a missing file": Case(lambda: ended("Error: Cannot find module './x'"), "./x is not among", "send it"),
    "a missing command of Python": Case(
        lambda: ended("sh: 1: gunicorn: not found", 127), "gunicorn is missing", "add gunicorn to requirements.txt"
    ),
    "a tool that sandboxes lack": Case(lambda: ended("sh: 1: wget: not found", 127), "have no wget", "curl -LO"),
    "a compiler": Case(lambda: ended("sh: 1: gcc: not found", 127), "have no gcc", "compile before"),
    "an unknown command": Case(lambda: ended("sh: 1: strat: not found", 127), "strat was not found", "check its name"),
    "a script that may not be executed": Case(
        lambda: ended("sh: 1: ./run: Permission denied", 126), "may not execute", '"executable"'
    ),
    "a full disk": Case(
        lambda: ended("OSError: [Errno 122] Disk quota exceeded"), "Its disk is full", "more with resources.disk"
    ),
    "a port that is taken": Case(
        lambda: ended("OSError: [Errno 98] Address already in use"), "on that port already", "start one server"
    ),
    "an address that is not there": Case(
        lambda: ended("OSError: [Errno 99] Cannot assign requested address"),
        "an address that the sandbox does not have",
        "bind it to 0.0.0.0",
    ),
    "a variable that stands in .env": Case(
        lambda: ended("KeyError: 'DB_URL'", _env="DB_URL=x"), "DB_URL", '"env_file": ".env"'
    ),
    "a command that ends": Case(lambda: ended("done", 0), "exited with code 0", '"job_type": "one_time"'),
    "memory": Case(killed, "out of memory, limit 1 GB", "resources.memory"),
    "a newer Python": Case(lambda: scanned(TEMPLATE), "Python 3.14 reads this", "here: write it for Python 3.13"),
    "a lock that is no JSON": Case(
        lambda: refused(package_json='{"dependencies": {"a": "1"}}', **{"package-lock_json": "{"}),
        "package-lock.json is not JSON",
        "make it anew (npm install --package-lock-only)",
    ),
    "workspaces": Case(
        lambda: refused(package_json='{"workspaces": ["a"], "dependencies": {"b": "1"}}'),
        "workspaces are not supported",
        "deploy the folder",
    ),
    "a private index": Case(
        lambda: refused(requirements_txt="--index-url https://pypi.example.com/simple\nflask\n"),
        "line 1: --index-url is refused",
        "by a credential with PIP_INDEX_URL",
    ),
    "a manifest in a subfolder": Case(
        lambda: unread_notes(["app.py", "backend/requirements.txt"])[0], "not read", "at the top of the files"
    ),
    "a lock of another tool": Case(lambda: unread_notes(["yarn.lock"])[0], "yarn.lock", "npm install"),
    "values in .env": Case(lambda: unread_notes([".env"])[0], ".env is not read", '"env"'),
    "a crash on the first request": Case(lambda: answered(500), "GET / was answered 500", "below 500 passes: mend"),
    "no answer": Case(lambda: answered(None, "it closed the connection"), "closed the connection", "must answer HTTP"),
}


@pytest.mark.parametrize("name", CASES)
def test_message_names_the_cause_and_the_change(name: str) -> None:
    case = CASES[name]
    message = case.message()
    assert case.cause in message
    assert case.change, "each names a change"
    assert case.change in message


def test_table_has_25_ways_to_fail() -> None:
    assert len(CASES) >= 25


def test_table_of_the_acceptance_test_has_25_ways_to_fail() -> None:
    assert len(BROKEN) >= 25
