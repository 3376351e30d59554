"""A row of the corpus of malicious shapes: the report, the class and the files."""

from __future__ import annotations

import base64
from typing import NamedTuple

from tests.gate import Files

B64 = base64.b64encode(b"print('hello')").decode()
B64_JS = base64.b64encode(b"console.log('hello')").decode()
HOOK = "https://hooks.example.com/1"


class Shape(NamedTuple):
    report: str
    kind: str
    files: Files
    entrypoint: str


def make_python(report: str, kind: str, text: str, /, **more: str) -> Shape:
    others = {name.replace("__", "/") + ".py": f"{code}\n" for name, code in more.items()}
    return Shape(report, kind, {"app.py": f"{text}\n", **others}, "python3 app.py")


def make_script(report: str, kind: str, text: str, /, **more: str) -> Shape:
    others = {f"{name}.js": f"{code}\n" for name, code in more.items()}
    return Shape(report, kind, {"app.js": f"{text}\n", **others}, "node app.js")


SECRETS, NAMES, DNS, RUN, LOAD, INPUT, HIDDEN = (
    "secrets sent",
    "host sent",
    "DNS",
    "download run",
    "download deserialized",
    "input sent",
    "hidden name",
)
DECODE, ENV, DESTROY, PERSIST, WALLET, REMOTE = (
    "decoded and run",
    "environment sent",
    "destruction",
    "persistence",
    "wallet address",
    "remote commands",
)
