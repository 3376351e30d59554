"""A command beside the app."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from tests.service import MINIMAL, Service

from builderd.adapters.fakes.engine import Answer

BUILDERS = "/api/v1/builders"


@pytest.fixture
async def path(client: httpx.AsyncClient) -> str:
    uuid = (await client.post(BUILDERS, json=MINIMAL)).json()["data"]["uuid"]
    return f"{BUILDERS}/{uuid}/exec"


async def test_its_exit_code_and_output_are_answered(client: httpx.AsyncClient, service: Service, path: str) -> None:
    service.engine.answer("ls /nowhere", Answer(2, "ls: no such file\n"))
    response = await client.post(path, json={"command": "ls /nowhere"})
    assert response.status_code == 200
    assert response.json()["data"] == {"exit_code": 2, "output": "ls: no such file\n", "truncated": False}


async def test_the_timeout_is_handed_on(client: httpx.AsyncClient, service: Service, path: str) -> None:
    service.engine.answer("sleep 90", Answer(0, "", seconds=90))
    assert (await client.post(path, json={"command": "sleep 90"})).json()["data"]["exit_code"] == 124
    ended = await client.post(path, json={"command": "sleep 90", "timeout": 100})
    assert ended.json()["data"]["exit_code"] == 0


async def test_nothing_runs_in_a_stopped_builder(client: httpx.AsyncClient, path: str) -> None:
    await client.post(path.replace("exec", "stop"))
    response = await client.post(path, json={"command": "ls"})
    assert (response.status_code, response.json()["code"]) == (409, "invalid_state")
    assert "stopped" in response.json()["message"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "command"),
        ({"command": " "}, "command"),
        ({"command": "a\0"}, "command"),
        ({"command": ["ls"]}, "command"),
        ({"command": "x" * 100_001}, "command"),
        ({"command": "ls", "timeout": 0}, "timeout"),
        ({"command": "ls", "timeout": 601}, "timeout"),
        ({"command": "ls", "timeout": "60"}, "timeout"),
        ({"command": "ls", "timeout": True}, "timeout"),
        ({"command": "ls", "shell": "bash"}, "shell"),
    ],
)
async def test_a_hostile_command_is_refused(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], field: str
) -> None:
    response = await client.post(path, json=body)
    assert (response.status_code, response.json()["code"]) == (422, "validation_error")
    assert list(response.json()["errors"]) == [field]


async def test_a_body_is_limited(client: httpx.AsyncClient, path: str) -> None:
    response = await client.post(path, json={"command": "x" * 1_000_000})
    assert (response.status_code, response.json()["code"]) == (413, "too_large")
