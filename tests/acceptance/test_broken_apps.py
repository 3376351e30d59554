"""Broken apps on the real parts: each answer names the cause and the change that mends it.

``-s`` prints the messages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.acceptance.live_service import TINY_APP, LiveService
from tests.acceptance.on_engines import OnIncus, OwnEngine

SERVER = "python3 main.py"
IPV6 = """\
import socket, time
server = socket.socket(socket.AF_INET6)
server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, {only})
server.bind(("{ip}", 8000))
server.listen()
print("listening", flush=True)
time.sleep(600)
"""
#: Answers each request with this text.
RAW = """\
import socket
server = socket.create_server(("0.0.0.0", 8000))
while True:
    client, _ = server.accept()
    client.recv(4096)
    client.sendall({answer!r})
    client.close()
"""
NODE_APP = "require('http').createServer((_, a) => a.end('up')).listen(process.env.PORT, '0.0.0.0');\n"
LOCK = {"lockfileVersion": 3, "packages": {"": {"dependencies": {"ms": "2.1.2"}}}}


@dataclass(frozen=True)
class Broken:
    """``code`` is the answer's, ``cause`` and ``change`` are words of its message."""

    code: str
    cause: str
    change: str
    files: Mapping[str, Any]
    entrypoint: str | None = SERVER
    fields: Mapping[str, Any] = field(default_factory=dict)


def _main(code: str, cause: str, change: str, text: str, **fields: Any) -> Broken:
    return Broken(code, cause, change, {"main.py": text}, fields=fields)


def _node(code: str, cause: str, change: str, package: Any, entrypoint: str = "npm start", **more: Any) -> Broken:
    fields: dict[str, Any] = {name: more.pop(name) for name in ("build", "release") if name in more}
    text = package if isinstance(package, str) else json.dumps(package)
    files = {"server.js": NODE_APP, "package.json": text, **{name.replace("__", "/"): more[name] for name in more}}
    return Broken(code, cause, change, files, entrypoint, fields)


def _needs(code: str, cause: str, change: str, requirements: str, **fields: Any) -> Broken:
    return Broken(code, cause, change, {"main.py": TINY_APP, "requirements.txt": requirements}, fields=fields)


START, INSTALL, REVIEW, QA = "start_failed", "install_failed", "review_failed", "qa_failed"
WAITS = "import time\nprint('loading', flush=True)\ntime.sleep(600)\n"
FILLS = """\
with open("big", "wb") as file:
    while True:
        file.write(b'x' * 10_000_000)
        file.flush()
"""
TAKEN = """\
import socket
first = socket.create_server(("0.0.0.0", 8001))
socket.create_server(("0.0.0.0", 8001))
"""

BROKEN: Mapping[str, Broken] = {
    "no port": _main(START, "did not listen on 0.0.0.0:8000", '"job_type": "worker"', WAITS, start_timeout=2),
    "slow import": _main(
        START, "on 0.0.0.0:8000 within ", 'set "start_timeout"', f"import slow\n{TINY_APP}", start_timeout=2
    ),
    "another port": _main(
        START, "port 5000", 'set "port" to 5000', TINY_APP.replace('int(os.environ["PORT"])', "5000")
    ),
    "IPv6 only": _main(START, "for IPv6 alone", "bind it to 0.0.0.0:8000", IPV6.format(ip="::", only=1)),
    "IPv6 loopback": _main(START, "does not have", "bind it to 0.0.0.0", IPV6.format(ip="::1", only=0)),
    "a missing module": _main(START, "module flask is missing", "add flask to requirements.txt", "import flask\n"),
    "a module of another name": _main(START, "module cv2", "add opencv-python-headless", "import cv2\n"),
    "a module in a subfolder": Broken(
        START, "lies in the folder src", "cd src", {"main.py": "import lib\n", "src/lib.py": "1\n"}
    ),
    "a manifest in a subfolder": Broken(
        START,
        "backend/requirements.txt is not read",
        "at the top of the files",
        {"main.py": "import flask\n", "backend/requirements.txt": "flask\n"},
    ),
    "a devDependency": _node(
        START, "devDependencies", "move it to dependencies", {"devDependencies": {"vite": "7"}}, "vite preview"
    ),
    "a missing Node package": _node(
        START,
        "express is missing",
        "dependencies of package.json",
        {},
        "node app.js",
        **{"app.js": "require('express')"},
    ),
    "a missing file of Node": _node(
        START, "./lib is not among", "send it", {}, "node app.js", **{"app.js": "require('./lib')"}
    ),
    "a missing file": Broken(REVIEW, "serve.py", "entrypoint", {"main.py": TINY_APP}, "python3 serve.py"),
    "a missing command": Broken(
        START, "gunicorn is missing", "add gunicorn to requirements.txt", {"app.py": ""}, "gunicorn app:app"
    ),
    "an unknown command": Broken(START, "strat was not found", "check its name", {"a.py": ""}, "strat a"),
    "a tool that sandboxes lack": Broken(START, "have no wget", "curl -LO", {"a": ""}, "wget -q http://a.invalid"),
    "another package tool": _node(
        START, "have no pnpm", "npm run", {"scripts": {"start": "node server.js"}}, "pnpm start"
    ),
    "a script that may not be executed": Broken(
        START, "may not execute", '"executable"', {"run": "#!/bin/sh\n"}, "./run"
    ),
    "a port that is taken": _main(
        START,
        "on that port already",
        "start one server",
        TAKEN,
    ),
    "a variable that stands in .env": Broken(
        START, "DB_URL", '"env_file": ".env"', {"main.py": "import os\nos.environ['DB_URL']\n", ".env": "DB_URL=x\n"}
    ),
    "a command that ends": _main(START, "exited with code 0", '"job_type": "one_time"', "print('done')\n"),
    "memory": _main(
        START,
        "out of memory, limit 0.125 GB",
        "resources.memory",
        "b = []\nwhile True: b.append(b'x' * 10**7)\n",
        resources={"memory": 0.125},
    ),
    "a full disk": _main(START, "Its disk is full", "resources.disk", FILLS, resources={"disk": 1}),
    "a newer Python": _main(
        REVIEW, "Python 3.14 reads this", "write it for Python 3.13", "name = 'a'\nprint(t'hello {name}')\n"
    ),
    "a syntax error": _main(REVIEW, "main.py:1", "expected ':'", "def a()\n    pass\n"),
    "a lock that is no JSON": _node(
        INSTALL,
        "package-lock.json is not JSON",
        "npm install --package-lock-only",
        {"dependencies": {"ms": "2.1.3"}},
        **{"package-lock.json": "{"},
    ),
    "a lock of another version": _node(
        INSTALL,
        "package-lock.json does not fit",
        "npm install --package-lock-only",
        {"dependencies": {"ms": "2.1.3"}},
        **{"package-lock.json": json.dumps(LOCK)},
    ),
    "no package.json, but in a subfolder": Broken(
        START, "no package.json at the top", '"root": "web"', {"web/package.json": "{}", "a.js": ""}, "npm start"
    ),
    "no package.json at all": Broken(START, "no package.json at the top", "send it", {"a.js": ""}, "npm start"),
    "no script of that name": _node(
        START, 'no script "serve"', "npm run dev", {"scripts": {"dev": "node server.js"}}, "npm run serve"
    ),
    "no script to build with": _node(
        "build_failed",
        'no script "bulid"',
        '"scripts"',
        {"scripts": {"start": "node server.js"}},
        build="npm run bulid",
    ),
    "a build that fails": _node(
        "build_failed", "exit code 2", "builderd logs", {"scripts": {"build": "echo no such file: a.ts; exit 2"}}
    ),
    "a release that fails": _main(
        "release_failed", "module flask is missing", "add flask", TINY_APP, release="python3 -c 'import flask'"
    ),
    "a version that does not exist": _needs(
        INSTALL, "requirements.txt, line 2: there is no version 99.9", "six", "idna\nsix==99.9\n"
    ),
    "a range without a version": _needs(INSTALL, "requirements.txt, line 1", "write six==", "six>=99\n"),
    "a Python package that does not exist": _needs(
        INSTALL,
        "requirements.txt, line 1: the package index has no package",
        "Correct its name",
        "builderd-no-such-thing\n",
    ),
    "requirements that exclude each other": _needs(
        INSTALL,
        "requirements.txt, line 2: werkzeug does not fit",
        "Change one of the two",
        "flask==3.0.0\nwerkzeug==1.0.0\n",
    ),
    "a package that needs a compiler": _needs(INSTALL, "pycurl is built from source", "has wheels", "pycurl==7.45.1\n"),
    "a private index in the file": _needs(
        INSTALL, "line 1: --index-url is refused", "PIP_INDEX_URL", "--index-url https://pypi.example.com/simple\nsix\n"
    ),
    "a Node version that does not exist": _node(
        INSTALL,
        "package.json, line 1: there is no version 99.99.99 of ms",
        "npm view ms",
        {"dependencies": {"ms": "99.99.99"}},
    ),
    "a Node package that does not exist": _node(
        INSTALL,
        "no package builderd-no-such-thing",
        "Correct its name",
        {"dependencies": {"builderd-no-such-thing": "1"}},
    ),
    "workspaces": _node(
        INSTALL, "workspaces are not supported", "deploy the folder", {"workspaces": ["a"], "dependencies": {"ms": "2"}}
    ),
    "a crash on the first request": _main(
        QA,
        "GET / was answered 500",
        "mend",
        RAW.format(answer=b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"),
        require_qa=True,
    ),
    "no answer": _main(QA, "without an HTTP answer", "must answer HTTP", RAW.format(answer=b""), require_qa=True),
    "resources at the top": _main("validation_error", "memory", "resources", TINY_APP, memory=2),
}


pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.engines]

#: An instance has the address ::1, which a sandbox of this machine has not.
CAUSES_ON_INCUS = {"IPv6 loopback": "listens on [::1]:8000"}
SLOW = {"slow.py": "import time\ntime.sleep(600)\n"}


@pytest.mark.parametrize("name", BROKEN)
def test_answer_names_the_cause_and_the_change(engine: OwnEngine | OnIncus, service: LiveService, name: str) -> None:
    app = BROKEN[name]
    cause = CAUSES_ON_INCUS.get(name, app.cause) if engine.is_incus else app.cause
    answer = service.call("POST", "/builders", json=_request(app))
    try:
        message = answer.json()["message"]
        print(f"\n--- {name}: {answer.status_code} {answer.json()['code']}\n{message}")  # noqa: T201 -- to be read with -s
        assert (answer.status_code, answer.json()["code"]) == (422, app.code), message
        assert cause in message
        assert app.change in message
    finally:
        if made := (answer.json().get("data") or {}).get("uuid"):
            service.call("DELETE", f"/builders/{made}?purge=true")


def _request(app: Broken) -> dict[str, object]:
    files = {**app.files, **(SLOW if "import slow" in str(app.files.get("main.py")) else {})}
    return {"name": "broken", "entrypoint": app.entrypoint, "files": files, "port": 8000, **app.fields}
