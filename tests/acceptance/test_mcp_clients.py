"""The official inspector and conformance suite against ``/mcp``.

They come from npm and need Node 22: the test runs where ``BUILDERD_MCP_TOOLS`` names folders (separated by ``:``) in
which they were installed, such as by ``npm install node@22 @modelcontextprotocol/inspector@2.12.0
@modelcontextprotocol/conformance@0.1.16``.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from fastapi import FastAPI
from tests.agents import service_with_mcp
from tests.service import Service, listening

pytestmark = pytest.mark.slow

SRC = str(Path(__file__).parents[2] / "src")
FOLDERS = [Path(one) for one in os.environ.get("BUILDERD_MCP_TOOLS", "").split(":") if one]
#: The scenarios that apply by revision; the others want tools of the suite's own, a session, or OAuth.
#: Left out of those that the library passes: dns-rebinding-protection, since a page in a browser has no token, and the
#: names of the host are the operator's choice.
OLD = ("server-initialize", "ping", "tools-list", "resources-list", "prompts-list", "tools-call-error")
NEW = (
    *("tools-list", "resources-list", "prompts-list", "tools-call-error", "caching", "http-header-validation"),
    *("input-required-result-unsupported-methods", "input-required-result-ignore-extra-params"),
    *("sep-2164-resource-not-found", "server-sse-multiple-streams", "server-stateless"),
)
#: Checks of `server-stateless` that call a tool of the suite's own, `test_missing_capability`.
NEEDS_SUITES_TOOL = {"sep-2575-server-rejects-undeclared-capability", "sep-2575-missing-capability-http-400"}


class WithToken:
    """The proxy: the suite can send no header of its own."""

    def __init__(self, app: Any, token: str) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            scope["headers"] = [*scope["headers"], (b"authorization", f"Bearer {self._token}".encode())]
        await self._app(scope, receive, send)


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with service_with_mcp() as running:
        yield running


@pytest.fixture
async def url(service: Service) -> AsyncIterator[str]:
    async with listening(cast("FastAPI", WithToken(service.app, service.write))) as address:
        yield f"{address}/mcp"


async def run(package: str, version: str, *words: str) -> str:
    """Run a program of a package with the newest Node that the folders have; return its output."""
    folder = next((one for one in FOLDERS if version_of(one, package).startswith(version)), None)
    if folder is None:
        pytest.skip(f"set BUILDERD_MCP_TOOLS to a folder with {package} {version}")
    node = next(
        (one / "node_modules/.bin/node" for one in FOLDERS if (one / "node_modules/.bin/node").exists()), "node"
    )
    program = folder / "node_modules/.bin" / package.rpartition("/")[2]
    process = await asyncio.create_subprocess_exec(
        str(node),
        str(program),
        *words,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd="/var/tmp",
    )
    output, _ = await asyncio.wait_for(process.communicate(), 120)
    return output.decode()


def version_of(folder: Path, package: str) -> str:
    file = folder / "node_modules" / package / "package.json"
    return str(json.loads(file.read_text())["version"]) if file.exists() else ""


async def test_the_inspector_lists_and_calls_tools(url: str) -> None:
    await inspect("--cli", url, "--transport", "http")


async def test_the_inspector_lists_and_calls_tools_over_stdio(service: Service) -> None:
    async with listening(service.app) as address:
        settings = (f"PYTHONPATH={SRC}", f"BUILDERD_URL={address}", f"BUILDERD_TOKEN={service.write}")
        variables = [word for one in settings for word in ("-e", one)]
        await inspect("--cli", *variables, sys.executable, "-m", "builderd", "mcp")


async def inspect(*words: str) -> None:
    package = "@modelcontextprotocol/inspector"
    listed = await run(package, "2.", *words, "--method", "tools/list")
    assert {"deploy_code", "get_spending"} <= {one["name"] for one in json.loads(listed)["tools"]}
    called = json.loads(await run(package, "2.", *words, "--method", "tools/call", "--tool-name", "list_deployments"))
    assert called["structuredContent"]["total"] == 0


@pytest.mark.parametrize("scenario", OLD)
async def test_the_suite_passes_for_2025_11_25(url: str, scenario: str) -> None:
    check(await run("@modelcontextprotocol/conformance", "0.1.", "server", "--url", url, "--scenario", scenario))


@pytest.mark.parametrize("scenario", NEW)
async def test_the_suite_passes_for_2026_07_28(url: str, scenario: str) -> None:
    words = ("server", "--url", url, "--scenario", scenario, "--spec-version", "2026-07-28")
    check(await run("@modelcontextprotocol/conformance", "0.2.", *words))


def check(output: str) -> None:
    """Expect that a scenario has passed, with at least one check and but for those that want the suite's own tool."""
    found = re.search(r"Passed: (\d+)/(\d+), (\d+) failed", output)
    assert found, output
    assert int(found[1]) > 0, output
    failed = {line.split()[1].strip("[]") for line in plain(output).splitlines() if "] FAILURE" in line}
    assert failed <= NEEDS_SUITES_TOOL, output
    assert int(found[3]) == len(failed), output


def plain(output: str) -> str:
    """Return an output without its colours, and without the blanks in its brackets."""
    return re.sub(r" +\]", "]", re.sub(r"\x1b\[[0-9;]*m", "", output))
