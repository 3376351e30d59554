"""The service from the wheel alone, as pip installs it: set up, upgraded while an app runs, and taken back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.acceptance.live_service import LiveService

pytestmark = [pytest.mark.root, pytest.mark.haproxy, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
#: Answers with what it drew when it began: another answer is from another process.
BORN = """\
import os, uuid
from http.server import BaseHTTPRequestHandler, HTTPServer

born = uuid.uuid4().hex.encode()

class App(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(born)))
        self.end_headers()
        self.wfile.write(born)

HTTPServer(("0.0.0.0", int(os.environ["PORT"])), App).serve_forever()
"""


class Installed:
    """A virtual environment with a service, and none of the checkout in reach."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder.parent / "home"
        self.home.mkdir()
        self.service = LiveService(folder.parent / "d")
        # As on a machine of a user: with Debian's Python, which is no pyenv's.
        subprocess.run(["/usr/bin/python3", "-m", "venv", str(folder)], check=True)

    def environment(self, **more: str) -> dict[str, str]:
        foreign = ("PYTHONPATH", "VIRTUAL_ENV")
        kept = {name: value for name, value in os.environ.items() if name not in foreign}
        kept = {name: value for name, value in kept.items() if not name.startswith("BUILDERD_")}
        own = {"BUILDERD_QA__REPORT": "false", "BUILDERD_SSH__PORT": str(self.service.ssh_port)}
        return {**kept, "HOME": str(self.home), "XDG_CONFIG_HOME": str(self.home / ".config"), **own, **more}

    def pip(self, *words: str) -> None:
        command = [str(self.folder / "bin/pip"), "install", "--quiet", "--disable-pip-version-check", *words]
        subprocess.run(command, env=self.environment(), cwd=self.home, check=True, timeout=1800)

    def run(self, *words: str, code: int = 0) -> str:
        """Run a command of the wheel's and return what it prints."""
        done = subprocess.run(
            [str(self.folder / "bin/builderd"), *words],
            env=self.environment(),
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def on_machine(self, *words: str, code: int = 0) -> str:
        return self.run(*words, "--data-dir", str(self.service.data_dir), code=code)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Run ``builderd serve``, as install-service's unit does; apps go on when it ends."""
        ports = ("--port", str(self.service.port), "--preview-port", str(self.service.preview_port))
        command = [str(self.folder / "bin/builderd"), "serve", "--data-dir", str(self.service.data_dir), *ports]
        with self.service.log_file.open("ab") as log:
            self.service.process = subprocess.Popen(
                command, env=self.environment(), cwd=self.home, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            self.service.wait_ready()
            yield
        finally:
            self.service.terminate()


def build(source: Path, folder: Path) -> Path:
    """Build a wheel of a source tree and return its file."""
    hatchling = Path(sys.executable).with_name("hatchling")
    subprocess.run([str(hatchling), "build", "-t", "wheel", "-d", str(folder)], cwd=source, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def present(folder: Path, version: str) -> Path:
    """Copy the present source, as this version: there is no release yet that an upgrade could begin with."""
    for name in ("src", "script", "README.md", "LICENSE", "pyproject.toml"):
        place = ROOT / name
        (shutil.copytree if place.is_dir() else shutil.copy)(place, folder / name)
    project = folder / "pyproject.toml"
    project.write_text(project.read_text().replace('version = "0.1.0"', f'version = "{version}"', 1))
    return folder


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Installed]:
    installed = Installed(tmp_path / "v")
    yield installed
    installed.on_machine("down")


def write_code(folder: Path, mark: str) -> None:
    """Write an app that answers with the mark and a text that each of its processes makes anew."""
    folder.mkdir(exist_ok=True)
    (folder / "main.py").write_text(BORN.replace("born = ", f'born = b"{mark} " + ', 1))


def redeploy(machine: Installed, state: Mapping[str, Any], mark: str) -> str:
    """Deploy other code, go back to version 1 and forward again; return the answer of the last process."""
    folder, service = machine.home / "app", machine.service
    write_code(folder, mark)
    machine.run("deploy", str(folder))
    number = service.builder(state["uuid"])["version"]
    assert service.visit(state).text.startswith(f"{mark} ")
    machine.run("rollback", "app", "--to", "1")
    assert service.visit(state).text.startswith("one ")
    machine.run("rollback", "app", "--to", str(number))
    assert service.builder(state["uuid"])["version"] == number + 2
    return service.visit(state).text


def test_wheel_installs_upgrades_and_goes_back_while_an_app_runs(machine: Installed, tmp_path: Path) -> None:
    sources = {name: tmp_path / name for name in ("old", "new")}
    for folder in sources.values():
        folder.mkdir()
    old, new = (
        build(present(sources[name], version), tmp_path / f"wheel-{name}")
        for name, version in (("old", "0.1.0"), ("new", "0.1.0.post1"))
    )
    shutil.rmtree(sources["new"])
    shutil.rmtree(sources["old"])
    service = machine.service

    machine.pip(f"builderd[server] @ file://{old}")
    app = machine.home / "app"
    write_code(app, "one")
    with machine.serving():
        token = machine.on_machine("token", "create", "--tenant", "acme").splitlines()[-1]
        service.token = token
        signed_in = {"BUILDERD_URL": service.url, "BUILDERD_TOKEN": token}
        machine.environment = lambda **more: Installed.environment(machine, **signed_in, **more)  # type: ignore[method-assign]
        machine.run("deploy", "--yes", str(app))
        state = service.call("GET", "/builders").json()["data"][0]
        born = service.visit(state).text
        machine.on_machine("backup", str(tmp_path / "before"), "--without-keys")

    # pip install -U and a restart: the app goes on meanwhile, as the process that it was.
    machine.pip("--upgrade", f"builderd[server] @ file://{new}")
    assert service.visit(state).text == born
    machine.on_machine("setup")
    machine.on_machine("doctor")
    with machine.serving():
        service.wait_status(state["uuid"], "running")
        assert service.visit(state).text == born
        changed = redeploy(machine, state, "two")

    # The way back, with the state of before, and by no step more than docs/operating.md has.
    machine.pip(f"builderd[server] @ file://{old}")
    assert service.visit(state).text == changed
    for file in service.data_dir.glob("builderd.db*"):
        file.unlink()
    machine.on_machine("restore", str(tmp_path / "before"), "--without-keys")
    with machine.serving():
        deadline = time.monotonic() + 60
        while service.visit(state).status_code != 200 and time.monotonic() < deadline:
            time.sleep(0.2)
        assert service.builder(state["uuid"])["version"] == 1
        assert json.loads(machine.run("schema"))["properties"]["entrypoint"]
        redeploy(machine, state, "three")
        machine.run("stop", "app")
        machine.run("start", "app")
        last = service.visit(state).text
        assert last.startswith("three ")

    # And the upgrade once more, of the store that both have used.
    machine.pip("--upgrade", f"builderd[server] @ file://{new}")
    with machine.serving():
        service.wait_status(state["uuid"], "running")
        assert service.visit(state).text == last
        redeploy(machine, state, "four")
