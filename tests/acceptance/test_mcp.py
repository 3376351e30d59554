"""An agent's session against a real service: it deploys a broken app, reads why, mends it, and looks at the page."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from tests.acceptance.live_service import LiveService, live_service
from tests.agents import Agent, text_of

pytestmark = pytest.mark.root

BROKEN = """\
import os
from http.server import BaseHTTPRequestHandler, HTTPServer

PAGE = b"<!doctype html><html lang=en><title>Shop</title><main><h1>Shop</h1></main></html>"

class App(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(PAGE)))
        self.end_headers()
        self.wfile.write(PAGE)

HTTPServer(("0.0.0.0", int(os.environ["PROT"])), App).serve_forever()
"""
MENDED = BROKEN.replace("PROT", "PORT")


@asynccontextmanager
async def over_http(service: LiveService) -> AsyncIterator[Agent]:
    headers = {"Authorization": f"Bearer {service.token}"}
    async with httpx2.AsyncClient(headers=headers, timeout=None, trust_env=False) as http:
        async with Client(streamable_http_client(f"{service.url}/mcp", http_client=http)) as client:
            yield Agent(client)


@asynccontextmanager
async def over_stdio(service: LiveService) -> AsyncIterator[Agent]:
    src = str(Path(__file__).parents[2] / "src")
    env = {**os.environ, "PYTHONPATH": src, "BUILDERD_URL": service.url, "BUILDERD_TOKEN": service.token}
    parameters = StdioServerParameters(command=sys.executable, args=["-m", "builderd", "mcp"], env=env)
    async with Client(parameters) as client:
        yield Agent(client)


async def mended(one: Agent, name: str) -> None:
    """Deploy a broken app, read why it fails, mend it and see it pass."""
    arguments: dict[str, Any] = {"name": name, "entrypoint": "python3 main.py", "require_qa": True}
    failed = await one.refused("deploy_code", files={"main.py": BROKEN}, **arguments)
    assert (failed["code"], failed["stage"]) == ("start_failed", "start")
    assert "KeyError: 'PROT'" in failed["app_output"]
    made = await one.done("deploy_code", files={"main.py": MENDED}, **arguments)
    assert (made["status"], made["qa_passed"]) == ("running", True)
    assert [message.split()[:2] for message in one.progress if "goes on" not in message] == [
        [stage, "passed"] for stage in ("review", "install", "start", "qa")
    ]
    ended = await one.done("exec_command", deployment=name, command="ls; exit 3")
    assert ended["exit_code"] == 3
    assert "main.py" in ended["output"]


async def deleted(one: Agent, name: str) -> None:
    assert (await one.refused("delete_deployment", deployment=name))["code"] == "confirmation_needed"
    await one.done("delete_deployment", deployment=name, confirm=name)


async def test_an_agent_mends_a_broken_app_over_http(service: LiveService) -> None:
    async with over_http(service) as one:
        await mended(one, "agents-shop")
        await deleted(one, "agents-shop")


@pytest.fixture
def restarted(data_dir: Path) -> Iterator[LiveService]:
    with live_service(data_dir) as service:
        yield service


@pytest.mark.slow
async def test_a_session_outlives_a_restart_of_the_service(restarted: LiveService) -> None:
    files, arguments = {"main.py": MENDED}, {"name": "shop", "entrypoint": "python3 main.py"}
    async with over_stdio(restarted) as beside, over_http(restarted) as one:
        begun = asyncio.create_task(beside.call("deploy_code", files=files, **arguments))
        await asyncio.sleep(0.5)
        await asyncio.to_thread(restarted.kill)
        await asyncio.to_thread(restarted.start)
        result = await begun
        # Unless the SDK has asked again with its key, the failure says to call once more.
        assert not result.is_error or "no_answer" in text_of(result), text_of(result)
        # The endpoint keeps no session: the same client goes on, and its retry makes no second deployment.
        again = await one.done("deploy_code", files=files, **arguments)
        assert again["status"] == "running"
        assert (await one.done("list_deployments"))["total"] == 1
