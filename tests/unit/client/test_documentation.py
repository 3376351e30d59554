"""The client: examples of docs/sdk.md run and make every call, and it presumes no Linux (see ``on_macos``)."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.application import hurry
from tests.fakes.sandboxes import Behaviour
from tests.threaded_service import threaded_service
from tests.unit.client.openapi import OPERATIONS, Operation, operation_of

PAGE = Path(__file__).parents[3] / "docs/sdk.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)

#: Calls that no example makes.
EXEMPT: dict[Operation, str] = {
    ("GET", "/metrics"): "counters of the operator, with a token of their own",
    ("POST", "/api/v1/builders/{uuid}/review/accept"): "needs a finding: tests/unit/client/test_calls.py",
    ("GET", "/api/v1/builders/{uuid}/qa/screenshots/{name}"): "needs a report: tests/unit/client/test_calls.py",
}


def test_its_examples_run_and_make_every_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my-app").mkdir()
    (tmp_path / "my-app/main.py").write_text("print('hello')\n")
    with tarfile.open(tmp_path / "code.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "my-app/main.py", "main.py")
    monkeypatch.chdir(tmp_path)
    made: set[Operation | None] = set()
    send = httpx2.Client.send

    def recorded(client: httpx2.Client, request: httpx2.Request, **options: Any) -> httpx2.Response:
        made.add(operation_of(request.method, request.url.path))
        return send(client, request, **options)

    monkeypatch.setattr(httpx2.Client, "send", recorded)
    with threaded_service() as running:
        monkeypatch.setenv("BUILDERD_URL", running.url)
        monkeypatch.setenv("BUILDERD_TOKEN", running.admin)
        names: dict[str, Any] = {}
        for number, example in enumerate(EXAMPLES):
            exec(compile(example, f"docs/sdk.md, example {number + 1}", "exec"), names)
        names["client"].close()
    assert (tmp_path / "fetched/main.py").read_text() == "print('hello')\n"
    assert OPERATIONS - made == set(EXEMPT)


FOLDER = Path(__file__).parents[3] / "examples"


def test_both_forms_of_a_script_tell_the_same_story(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with threaded_service() as running:
        monkeypatch.setenv("BUILDERD_URL", running.url)
        monkeypatch.setenv("BUILDERD_TOKEN", running.admin)
        told = []
        for name in ("story.py", "story_async.py"):
            runpy.run_path(str(FOLDER / name), run_name="__main__")
            told.append(capsys.readouterr().out)
    assert told[0] == told[1]
    assert told[0].startswith("review passed\ninstall passed\nstart passed\n")
    assert "versions [2, 1]" in told[0]
    assert "note kept, exit code 0" in told[0]
    assert "story is running, version 3" in told[0]


PROGRAM = Path(__file__).with_name("on_macos.py")


def test_the_client_works_without_what_only_linux_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, file, code in (("app", "main.py", "import http.server\n"), ("job", "job.py", "print('hello')\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_text(code)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("BUILDERD_", "XDG_"))}
    hurry(monkeypatch.setattr)
    with threaded_service() as running:
        job = Behaviour(listens_at=None, exits_at=1, exit_code=4, lines=("from the job",))
        running.service.engine.behave("python3 job.py", job)
        done = subprocess.run(
            [sys.executable, str(PROGRAM), running.url, running.admin],
            env={**environment, "HOME": str(tmp_path)},
            cwd=tmp_path / "app",
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stdout + done.stderr
