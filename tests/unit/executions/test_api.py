"""A command beside the app."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from httpx_sse import aconnect_sse
from tests.fakes.processes import Answer
from tests.service import MINIMAL, Service

from builderd.builders import outcomes
from builderd.core.ids import TenantId
from builderd.executions import api as executions_api
from builderd.executions import service as executions
from builderd.sandboxes.model import SandboxReport, SandboxSpec
from builderd.server.limits import TENANTS_AT_ONCE, Turns

BUILDERS = "/api/v1/builders"


@pytest.fixture
async def path(client: httpx.AsyncClient) -> str:
    uuid = (await client.post(BUILDERS, json=MINIMAL)).json()["data"]["uuid"]
    return f"{BUILDERS}/{uuid}/exec"


async def test_exec_answers_exit_code_and_output(client: httpx.AsyncClient, service: Service, path: str) -> None:
    service.engine.answer("ls /nowhere", Answer(2, "ls: no such file\n"))
    response = await client.post(path, json={"command": "ls /nowhere"})
    assert response.status_code == 200
    assert response.json()["data"] == {
        "exit_code": 2,
        "output": "ls: no such file\n",
        "stderr": "",
        "truncated": False,
        "hint": "",
    }


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("separate", [False, True])
async def test_a_failed_command_tells_what_is_missing_and_where_to_add_it(
    client: httpx.AsyncClient, service: Service, path: str, stream: bool, separate: bool
) -> None:
    service.engine.answer("vite build", Answer(127, "", errors="sh: 1: vite: not found\n"))
    answer = await client.post(path, json={"command": "vite build", "stream": stream, "separate": separate})
    hint = json.loads(answer.text.rpartition("data: ")[2]) if stream else answer.json()["data"]
    assert hint["hint"] == 'The command vite is missing: add "vite" to the dependencies of package.json.'


async def test_a_failed_command_costs_no_read_of_the_versions_files(
    client: httpx.AsyncClient, service: Service, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(_: str) -> None:
        raise AssertionError("a large bundle takes seconds")

    service.engine.answer("gcc", Answer(127, "sh: 1: gcc: not found\n"))
    monkeypatch.setattr(service.bundles, "get", refuse)
    answer = await client.post(path, json={"command": "gcc"})
    assert 'packages = ["build-essential"]' in answer.json()["data"]["hint"]


async def test_a_successful_command_that_prints_such_words_gets_no_hint(
    client: httpx.AsyncClient, service: Service, path: str
) -> None:
    service.engine.answer("cat log", Answer(0, "sh: 1: vite: not found\n"))
    answer = await client.post(path, json={"command": "cat log"})
    assert answer.json()["data"]["hint"] == ""


async def test_a_long_output_is_answered_in_small_pieces() -> None:
    for length, number in ((0, 1), (1000, 1), (3 * executions_api.PIECE, 4)):
        output = executions.Output(limit=1 << 20)
        output._kept[False] += b"\x01" * length
        ended, encoding = executions.Ended(0, output), Turns(TENANTS_AT_ONCE)
        pieces = [piece async for piece in executions_api._answer(ended, encoding, TenantId("acme"))]
        assert json.loads("".join(pieces))["data"]["output"] == "\x01" * length
        assert len(pieces) == number

        assert max(map(len, pieces)) <= 7 * executions_api.PIECE


async def test_its_streams_are_kept_apart_where_that_is_asked_for(
    client: httpx.AsyncClient, service: Service, path: str
) -> None:
    service.engine.answer("make", Answer(2, "made\n", errors="wörse\n"))
    joined = await client.post(path, json={"command": "make"})
    assert (joined.json()["data"]["output"], joined.json()["data"]["stderr"]) == ("made\nwörse\n", "")
    apart = await client.post(path, json={"command": "make", "separate": True})
    assert (apart.json()["data"]["output"], apart.json()["data"]["stderr"]) == ("made\n", "wörse\n")
    events = (await client.post(path, json={"command": "make", "separate": True, "stream": True})).text
    assert '"stream": "stderr"' in events or '"stream":"stderr"' in events
    assert '"stream": "stdout"' in events or '"stream":"stdout"' in events


async def test_exec_in_a_starting_builder_is_retried_later(
    client: httpx.AsyncClient, service: Service, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, start = asyncio.Event(), service.engine.start

    async def held(spec: SandboxSpec) -> SandboxReport:
        await go_on.wait()
        return await start(spec)

    monkeypatch.setattr(service.engine, "start", held)
    monkeypatch.setattr(outcomes, "MAX_WAIT_SECONDS", 0.05)
    await client.post(path.replace("/exec", "/restart"), headers={"Prefer": "respond-async"})
    for body in ({"command": "ls"}, {"command": "ls", "stream": True}):
        response = await client.post(path, json=body)
        assert (response.status_code, response.json()["code"]) == (409, "invalid_state")
        assert int(response.headers["Retry-After"]) > 0
    monkeypatch.setattr(outcomes, "MAX_WAIT_SECONDS", 30)
    go_on.set()
    assert (await client.post(path, json={"command": "ls"})).status_code == 200


async def test_the_timeout_is_handed_on(client: httpx.AsyncClient, service: Service, path: str) -> None:
    service.engine.answer("sleep 2", Answer(0, "", seconds=2))
    late = await client.post(path, json={"command": "sleep 2", "timeout": 1})
    assert late.json()["data"]["exit_code"] == 124
    assert (await client.post(path, json={"command": "sleep 2"})).json()["data"]["exit_code"] == 0


async def test_input_folder_and_environment_are_handed_on(
    client: httpx.AsyncClient, service: Service, path: str
) -> None:
    service.engine.answer("cat", Answer(echoes=True))
    body = {"command": "cat", "stdin": "grüß\n", "cwd": "src", "env": {"LEVEL": 3}}
    assert (await client.post(path, json=body)).json()["data"]["output"] == "grüß\n"
    (spec,) = service.engine.processes
    assert (spec.folder, spec.env) == ("/app/src", {"LEVEL": "3"})


async def test_a_folder_that_is_not_there_is_a_wrong_field(
    client: httpx.AsyncClient, service: Service, path: str
) -> None:
    service.engine.answer("ls", Answer(no_folder=True))
    response = await client.post(path, json={"command": "ls", "cwd": "nowhere"})
    assert (response.status_code, list(response.json()["errors"])) == (422, ["cwd"])


async def test_output_is_streamed_as_it_comes(client: httpx.AsyncClient, service: Service, path: str) -> None:
    service.engine.answer("make", Answer(2, "wörk\nno rule\n"))
    events = await streamed(client, path, {"command": "make", "stream": True})
    assert [data["text"] for name, data in events if name == "output"] == ["wörk\nno rule\n"]
    assert events[-1] == ("exit", {"exit_code": 2, "truncated": False, "hint": ""})


async def test_a_stream_that_cannot_begin_fails_as_a_call(client: httpx.AsyncClient, path: str) -> None:
    await client.post(path.replace("exec", "stop"))
    response = await client.post(path, json={"command": "ls", "stream": True})
    assert (response.status_code, response.json()["code"]) == (409, "invalid_state")


async def test_failing_stream_ends_with_a_failure_event(client: httpx.AsyncClient, service: Service, path: str) -> None:
    service.engine.answer("ls", Answer(no_folder=True))
    ((name, data),) = await streamed(client, path, {"command": "ls", "cwd": "nowhere", "stream": True})
    assert (name, data["code"]) == ("failed", "validation_error")


async def streamed(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> list[tuple[str, Any]]:
    async with aconnect_sse(client, "POST", path, json=body) as source:
        return [(event.event, event.json()) async for event in source.aiter_sse()]
