"""Both revisions of the protocol on one endpoint, tokens and limits as those of the API."""

from __future__ import annotations

import httpx2
import pytest
from tests.agents import agent
from tests.service import Service

from builderd.domain.tokens import Scope
from builderd.mcp.http import InProcess
from builderd.operations.rates import Rates

CODE = {"main.py": "print('hello')\n"}


@pytest.mark.parametrize(("mode", "revision"), [("auto", "2026-07-28"), ("legacy", "2025-11-25")])
async def test_an_agent_deploys_in_either_revision(service: Service, mode: str, revision: str) -> None:
    async with agent(service, service.write, mode) as one:
        assert one.client.protocol_version == revision
        tools = (await one.client.list_tools()).tools
        assert 20 <= len(tools) <= 25
        made = await one.done("deploy_code", name="hello", files=CODE, entrypoint="python3 main.py")
        assert made["status"] == "running"
        assert [message.split()[0] for message in one.progress] == ["review", "install", "start", "qa"]


@pytest.mark.parametrize("token", [None, "bd_unknown"])
async def test_a_call_without_a_valid_token_is_refused_as_by_the_api(service: Service, token: str | None) -> None:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with httpx2.AsyncClient(transport=InProcess(service.app), headers=headers) as http:
        answer = await http.post("http://builderd/mcp", json={"jsonrpc": "2.0", "id": 1, "method": "tools/list"})
        assert answer.status_code == 401
        assert answer.json()["code"] == "unauthenticated"
        assert (await http.get("http://builderd/mcp")).status_code == 405


async def test_too_large_a_message_is_refused_unread(service: Service) -> None:
    headers = {"Authorization": f"Bearer {service.write}"}
    async with httpx2.AsyncClient(transport=InProcess(service.app), headers=headers) as http:
        answer = await http.post("http://builderd/mcp", content=b" " * 4_000_001)
        assert answer.status_code == 413
        assert answer.json()["code"] == "too_large"


async def test_a_token_that_may_read_cannot_write(service: Service) -> None:
    async with agent(service, service.read) as one:
        assert (await one.done("list_deployments"))["total"] == 0
        refused = await one.refused("deploy_code", name="hello", files=CODE, entrypoint="x")
        assert refused["code"] == "forbidden"
        assert "ask the user" in refused["next_step"]


async def test_calls_of_tools_count_against_the_rate_of_the_token(service: Service) -> None:
    async with agent(service, service.write) as one:
        await one.done("list_deployments")
        service.app.state.rates = Rates(requests=2)
        # The message, and the first of the tool's two calls.
        refused = await one.refused("get_spending")
        assert refused["code"] == "rate_limited"
        assert refused["retry_after_seconds"] > 0


async def test_a_tenant_sees_nothing_of_another(service: Service) -> None:
    async with agent(service, service.write) as one, agent(service, service.other) as other:
        made = await one.done("deploy_code", name="hello", files=CODE, entrypoint="python3 main.py")
        assert (await other.done("list_deployments"))["total"] == 0
        for name in ("hello", made["uuid"]):
            assert (await other.refused("get_deployment", deployment=name))["code"] == "not_found"


async def test_an_event_names_token_and_agent(service: Service) -> None:
    token = await service.token("acme", Scope.WRITE)
    async with agent(service, token) as one:
        await one.done("deploy_code", name="hello", files=CODE, entrypoint="python3 main.py")
    events = (await service.client(service.read).get("/api/v1/events?type=builder.created")).json()["data"]
    assert [one["actor"] for one in events] == ["token test (mcp mcp)"]
