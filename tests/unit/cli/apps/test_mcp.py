"""``builderd mcp``: tools over stdio for the service in use, and the entry for agents."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from mcp import Client
from mcp.client.stdio import StdioServerParameters
from tests.agents import Agent
from tests.threaded_service import threaded_service

from builderd.cli.apps import mcp as command
from builderd.cli.group import builderd

SRC = str(Path(__file__).parents[4] / "src")
CODE = {"main.py": "print('hello')\n"}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("BUILDERD_URL", "BUILDERD_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def run(*words: str, **options: Any) -> Any:
    return CliRunner().invoke(builderd, ["mcp", *words], prog_name="builderd", **options)


def test_install_shows_asks_and_writes(project: Path) -> None:
    file = project / ".mcp.json"
    refused = run("install", "claude-code", input="n\n")
    assert refused.exit_code == 1
    assert '"mcpServers"' in refused.output
    assert not file.exists()
    assert run("install", "claude-code", input="y\n").exit_code == 0
    assert json.loads(file.read_text())["mcpServers"]["builderd"]["args"][-1] == "mcp"
    assert "so already" in run("install", "claude-code").output


def test_install_writes_a_token_only_on_request_and_shows_it_never(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUILDERD_URL", "http://x")
    monkeypatch.setenv("BUILDERD_TOKEN", "bd_secret")
    file = project / ".mcp.json"
    assert run("install", "claude-code", "--yes").exit_code == 0
    assert "bd_secret" not in file.read_text()
    done = run("install", "claude-code", "--yes", "--with-token")
    assert "bd_secret" not in done.output
    assert "bd_secret" in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600


def test_without_a_service_it_says_how_to_sign_in(project: Path) -> None:
    done = run()
    assert done.exit_code == 3
    assert "builderd login" in done.stderr


def test_without_the_library_it_says_what_to_install(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise ModuleNotFoundError("No module named 'mcp'", name="mcp")

    monkeypatch.setattr(command, "import_module", missing)
    done = run(env={"BUILDERD_URL": "http://x", "BUILDERD_TOKEN": "t"})
    assert done.exit_code == 1
    assert "pip install 'builderd[mcp]'" in done.stderr


async def test_an_agent_works_over_stdio() -> None:
    with threaded_service() as running:
        env = {
            **os.environ,
            "PYTHONPATH": SRC,
            "BUILDERD_URL": running.url,
            "BUILDERD_TOKEN": running.service.write,
        }
        parameters = StdioServerParameters(command=sys.executable, args=["-m", "builderd", "mcp"], env=env)
        async with Client(parameters) as client:
            one = Agent(client)
            made = await one.done("deploy_code", name="hello", files=CODE, entrypoint="python3 main.py")
            assert made["status"] == "running"
            assert [message.split()[0] for message in one.progress] == ["review", "install", "start", "qa"]
            assert (await one.refused("get_deployment", deployment="nowhere"))["code"] == "not_found"
