"""Answers without the values of credentials, and the program's name in events, by headers of the caller."""

from collections.abc import AsyncIterator

import pytest
from tests.fakes.processes import Answer
from tests.service import MINIMAL, Service, running_service

from builderd.api.server import middleware
from builderd.domain.credentials import MASK

SECRET = "sk-very-secret-0001"
MASKED = {"Builderd-Mask": "credentials"}


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with running_service() as running:
        client = running.client(running.write)
        put = await client.put("/api/v1/credentials/pay", json={"values": {"KEY": SECRET}})
        assert put.is_success, put.text
        yield running


async def made(service: Service, **headers: str) -> str:
    body = {**MINIMAL, "credentials": ["pay"]}
    answer = await service.client(service.write, **headers).post("/api/v1/builders", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["data"]["uuid"])


async def test_output_logs_and_files_are_masked_on_request_and_else_not(service: Service) -> None:
    uuid = await made(service)
    service.engine.answer("env", Answer(output=f"KEY={SECRET}\n"))
    (sandbox,) = service.engine.known
    service.engine.print(sandbox, f"paying with {SECRET}")
    for headers, expected, hidden in (({}, SECRET, MASK), (MASKED, MASK, SECRET)):
        client = service.client(service.write, **headers)
        path = f"/api/v1/builders/{uuid}"
        await client.put(f"{path}/files/note.txt", content=SECRET.encode())
        answers = [
            await client.post(f"{path}/exec", json={"command": "env"}),
            await client.get(f"{path}/logs"),
            await client.get(f"{path}/files/note.txt"),
        ]
        for answer in answers:
            assert expected in answer.text
            assert hidden not in answer.text


async def test_another_tenants_credentials_are_not_read(service: Service) -> None:
    client = service.client(service.other, **MASKED)
    answer = await client.post("/api/v1/builders", json={**MINIMAL, "name": "other", "env": {"A": SECRET}})
    assert answer.json()["data"]["env"] == {"A": SECRET}


async def test_the_event_stream_of_a_deployment_is_masked(service: Service) -> None:
    client = service.client(service.write, **MASKED, Accept="text/event-stream")
    answer = await client.post("/api/v1/builders", json={**MINIMAL, "env": {"A": f"x{SECRET}"}})
    assert "event: done" in answer.text
    assert SECRET not in answer.text
    assert f"x{MASK}" in answer.text


async def test_an_event_names_the_program_that_called(service: Service) -> None:
    await made(service, **{"Builderd-Client": "mcp claude-code"})
    events = (await service.client(service.read).get("/api/v1/events?type=builder.created")).json()["data"]
    assert [one["actor"] for one in events] == ["token test (mcp claude-code)"]


@pytest.mark.parametrize("name", ["", "a\tb", "x" * 65, "(admin)"])
async def test_a_malformed_program_name_is_ignored(service: Service, name: str) -> None:
    client = service.client(service.write, **{"Builderd-Client": name})
    answer = await client.post("/api/v1/builders", json={**MINIMAL, "name": "plain"})
    uuid = answer.json()["data"]["uuid"]
    (version,) = (await client.get(f"/api/v1/builders/{uuid}/versions")).json()["data"]
    assert version["created_by"] == "token test"


async def test_a_long_answer_is_masked_without_being_collected(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(middleware, "MAX_DOCUMENT", 1_000)
    uuid = await made(service)
    client = service.client(service.write, **MASKED)
    content = b"x" * 300_000 + SECRET.encode() + b"y" * 300_000
    await client.put(f"/api/v1/builders/{uuid}/files/long", content=content)
    read = (await client.get(f"/api/v1/builders/{uuid}/files/long")).content
    assert read == content.replace(SECRET.encode(), MASK.encode())
    service.engine.answer("long", Answer(output=f"{'z' * 50_000}{SECRET}{'z' * 50_000}"))
    ended = (await client.post(f"/api/v1/builders/{uuid}/exec", json={"command": "long"})).json()["data"]
    assert ended["output"] == f"{'z' * 50_000}{MASK}{'z' * 50_000}"
