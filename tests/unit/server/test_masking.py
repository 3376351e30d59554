"""Answers without the values of credentials, the program's name in events, and ids and lines of the log."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator

import httpx
import pytest
from tests.fakes.processes import Answer
from tests.service import MINIMAL, Service, running_service

from builderd.credentials.model import MASK
from builderd.server import middleware
from builderd.server.answers import RequestIdFilter

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


UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


async def test_every_answer_has_an_id_of_its_own(client: httpx.AsyncClient) -> None:
    ids = [(await client.get(path)).headers["x-request-id"] for path in ("/healthz", "/nope", "/api/v1/builders")]
    assert len(set(ids)) == 3
    assert all(UUID.fullmatch(one) for one in ids)


@pytest.mark.parametrize("given", ["a", "my-id_1.2:3", "f" * 128])
async def test_a_sane_id_from_outside_is_kept(client: httpx.AsyncClient, given: str) -> None:
    assert (await client.get("/healthz", headers={"X-Request-Id": given})).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "-a", "f" * 129, "a b", "a\tb", "<script>", "ä", 'a"b', "a;b"])
async def test_any_other_id_is_replaced(client: httpx.AsyncClient, given: str) -> None:
    headers = [(b"X-Request-Id", given.encode())]
    assert UUID.fullmatch((await client.get("/healthz", headers=headers)).headers["x-request-id"])


async def test_lines_of_the_log_carry_the_id(client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.handler.addFilter(RequestIdFilter())
    with caplog.at_level(logging.INFO, "builderd.server"):
        await client.get("/api/v1/builders/x", headers={"X-Request-Id": "id-1"})
        logging.getLogger("builderd.server").info("outside")
    records = [record for record in caplog.records if record.name.startswith("builderd.server")]
    assert [record.__dict__["request_id"] for record in records] == ["id-1", "-"]
    assert records[0].getMessage().startswith("request method=GET path=/api/v1/builders/x status=404 ms=")


async def test_no_secret_and_no_line_break_gets_into_the_log(
    client: httpx.AsyncClient, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "builderd"):
        created = await client.post("/api/v1/builders", json=MINIMAL)
        await client.get("/x%0AINFO forged?service_token=secret-in-query")
    text = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("builderd"))
    assert "forged" in text
    assert "\nINFO" not in text
    for secret in (service.write, created.json()["data"]["service_token"], "secret-in-query"):
        assert secret not in text


async def test_answers_are_kept_by_no_cache_and_guessed_at_by_no_browser(client: httpx.AsyncClient) -> None:
    headers = (await client.get("/api/v1/builders")).headers
    assert (headers["cache-control"], headers["x-content-type-options"]) == ("no-store", "nosniff")
