"""A service with the MCP server, and an agent of it in both revisions of the protocol."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.agents import Agent, agent, service_with_mcp
from tests.service import Service


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with service_with_mcp() as running:
        yield running


@pytest.fixture
async def writer(service: Service) -> AsyncIterator[Agent]:
    """An agent whose token may write."""
    ready: asyncio.Future[Agent] = asyncio.get_running_loop().create_future()
    over = asyncio.Event()

    async def use() -> None:
        # In one task: the library's scopes must end where they began, and a fixture's two halves run in two tasks.
        async with agent(service, service.write) as made:
            ready.set_result(made)
            await over.wait()

    task = asyncio.create_task(use())
    try:
        yield await asyncio.wait_for(ready, 60)
    finally:
        over.set()
        await task
