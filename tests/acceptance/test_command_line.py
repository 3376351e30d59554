"""The command line as a user types it, against a real service: from login to a job's output."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.acceptance.live_service import LiveService

from builderd.cli.group import builderd

FLASK = """\
from flask import Flask

app = Flask(__name__)


@app.get("/")
def hello():
    print("visited", flush=True)
    return {"hello": "world"}
"""
JOB = """\
import os, sys
print("working")
os.makedirs("out")
open("out/result.txt", "w").write("42")
sys.exit(int(sys.argv[1]))
"""


class Shell:
    """A user's shell: a home of their own, without rights on the machine's service."""

    def __init__(self, home: Path) -> None:
        self.home = home
        keep = {name: value for name, value in os.environ.items() if not name.startswith("BUILDERD_")}
        without: dict[str, Any] = dict.fromkeys(("BUILDERD_URL", "BUILDERD_TOKEN"), "")
        self._environment = {**keep, **without, "HOME": str(home), "XDG_CONFIG_HOME": str(home / ".config")}

    def process(self, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run a command as a process of its own, which takes half a second of CPU."""
        environment = {**self._environment, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
        argv = [sys.executable, "-m", "builderd", *words]
        return subprocess.run(argv, cwd=cwd, env=environment, capture_output=True, text=True, check=True, timeout=120)

    def run(self, *words: str, cwd: Path, code: int = 0, stdin: str = "") -> Result:
        with contextlib.chdir(cwd):
            done = CliRunner().invoke(builderd, list(words), env=self._environment, input=stdin, prog_name="builderd")
        assert done.exit_code == code, f"{words}: {done.exit_code}\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *words: str, cwd: Path) -> Any:
        return json.loads(self.run(*words, "--json", cwd=cwd).stdout)


@pytest.mark.root
@pytest.mark.haproxy
@pytest.mark.engines
def test_a_user_goes_from_login_to_a_jobs_output(service: LiveService, tmp_path: Path) -> None:
    shell, app, job = Shell(tmp_path), tmp_path / "flask-app", tmp_path / "flask-job"
    app.mkdir()
    job.mkdir()
    (app / "main.py").write_text(FLASK)
    (app / "requirements.txt").write_text("flask\n")
    (job / "main.py").write_text(JOB)

    assert "Signed in" in shell.run("login", service.url, "--token-stdin", cwd=app, stdin=service.token).stdout
    deployed = shell.process("deploy", "--yes", cwd=app)
    assert "Found Flask: main.py makes an app of Flask." in deployed.stderr
    state = shell.json("status", cwd=app)
    assert deployed.stdout.strip() == state["preview_url"]
    assert service.visit(state).json() == {"hello": "world"}
    assert "visited" in shell.run("logs", cwd=app).stdout
    assert shell.run("exec", ".", "--", "cat main.py; exit 3", cwd=app, code=3).stdout == FLASK
    assert shell.process("ssh", "connect", ".", "echo", "inside", cwd=app).stdout == "inside\n"

    (app / "main.py").write_text("raise RuntimeError('no database')\n" + FLASK)
    failed = shell.run("deploy", cwd=app, code=1)
    assert "no database" in failed.stderr
    assert failed.stderr.endswith("Next: builderd logs flask-app\n")
    assert service.visit(state).json() == {"hello": "world"}
    assert shell.json("rollback", "--to", "1", cwd=app)["version"] == 3

    ran = shell.run("run", "--output", "out", ".", "--", "python3", "main.py", "7", cwd=job, code=7)
    assert ran.stdout == "working\n"
    assert (job / "out/result.txt").read_text() == "42"
    shell.run("delete", "--yes", cwd=app)
    assert [one["name"] for one in shell.json("ps", cwd=app) if one["name"].startswith("flask-")] == []
