"""The client against the real door: each call, its shape, and its errors."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest
from tests.service import MINIMAL, Service, listening, running_service

from builderd.adapters.fakes.processes import Answer
from builderd.adapters.fakes.sandboxes import Behaviour
from builderd.api.server import streams
from builderd.client.legacy import ApiError, Client, NoAnswer, Stage
from builderd.domain.builders import Status
from builderd.domain.tokens import Scope
from builderd.schemas.v1.builders import NewBuilder


@dataclass(frozen=True)
class Running:
    service: Service
    url: str
    loop: asyncio.AbstractEventLoop


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """In a thread of its own: the client is synchronous."""
    started: list[Running] = []
    ready, over = threading.Event(), threading.Event()

    async def serve() -> None:
        async with running_service() as service, listening(service.app) as url:
            started.append(Running(service, url, asyncio.get_running_loop()))
            ready.set()
            await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(20)
    yield started[0]
    over.set()
    thread.join()


@pytest.fixture
def client(running: Running) -> Iterator[Client]:
    """Return a client of a tenant that leaves nothing to the next test."""
    with Client(running.url, running.service.write) as opened:
        yield opened
        for builder in opened.list_page().data:
            opened.delete(builder.uuid)


def new(**fields: Any) -> NewBuilder:
    return NewBuilder.model_validate({**MINIMAL, **fields})


def test_a_builder_lives(client: Client) -> None:
    builder = client.create(new(env={"A": 1}, files={"main.py": {"content": "aGk=", "encoding": "base64"}}))
    assert (builder.status, builder.env) == (Status.RUNNING, {"A": "1"})
    assert client.get(builder.uuid).model_copy(update={"cost": builder.cost}) == builder  # it costs by the second
    assert [one.uuid for one in client.list_page(name="my-api").data] == [builder.uuid]
    assert client.list_page(status=Status.STOPPED).meta.total == 0
    assert client.stop(builder.uuid).status is Status.STOPPED
    assert client.start(builder.uuid).status is Status.RUNNING
    assert client.restart(builder.uuid).status is Status.RUNNING
    assert client.delete(builder.uuid).status is Status.DELETED


def test_client_yields_stages_as_they_end(client: Client) -> None:
    stages: list[Stage] = []
    client.create(new(files={"main.py": "", "requirements.txt": "flask"}), on_stage=stages.append)
    told = [("review", True), ("install", True), ("start", True), ("qa", True)]
    assert [(stage.name, stage.ok) for stage in stages] == told


def test_a_failed_stage_is_an_error_with_the_builders_uuid(client: Client, running: Running) -> None:
    running.service.engine.behave("broken", Behaviour(listens_at=None, exits_at=1))
    with pytest.raises(ApiError, match="start_failed") as caught:
        client.create(new(entrypoint="broken"))
    assert client.get(caught.value.data["uuid"]).status is Status.FAILED
    assert caught.value.request_id


def test_a_refused_request_says_which_fields(client: Client) -> None:
    client.create(new())
    with pytest.raises(ApiError) as caught:
        client.create(new(resources={"cpu": 10**6}))
    assert (caught.value.status, caught.value.code) == (422, "validation_error")
    assert list(caught.value.errors) == ["resources.cpu"]
    with pytest.raises(ApiError, match="name_taken"):
        client.create_async(new())


def test_a_retry_is_the_same_builder(client: Client) -> None:
    first = client.create(new(), idempotency_key="k")
    assert client.create(new(), idempotency_key="k").uuid == first.uuid
    assert client.create_async(new(name="b"), idempotency_key="k2").status is Status.CREATING


def test_logs_are_read_and_followed(client: Client, running: Running) -> None:
    running.service.engine.behave("writes", Behaviour(lines=("one", "two")))
    uuid = client.create(new(entrypoint="writes")).uuid
    assert [line.text for line in client.logs(uuid, tail=1)] == ["two"]
    assert client.logs(uuid, since=datetime.now(UTC) + timedelta(hours=1)) == []
    lines = client.follow_logs(uuid)
    assert [next(lines).text, next(lines).text] == ["one", "two"]
    lines.close()  # type: ignore[attr-defined]


def test_a_follower_of_logs_gets_over_heartbeats(
    client: Client, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "HEARTBEAT_SECONDS", 0.02)
    running.service.engine.behave("writes", Behaviour(lines=("one",)))
    uuid = client.create(new(entrypoint="writes")).uuid
    lines = client.follow_logs(uuid)
    assert next(lines).text == "one"
    time.sleep(0.2)
    client.restart(uuid)
    assert next(lines).text == "one"
    lines.close()  # type: ignore[attr-defined]


def test_a_command_is_run(client: Client, running: Running) -> None:
    uuid = client.create(new()).uuid
    running.service.engine.answer("ls", Answer(0, "main.py\n"))
    assert client.execute(uuid, "ls").output == "main.py\n"
    told: list[str] = []
    ended = client.execute(uuid, "ls", on_output=told.append)
    assert ("".join(told), ended.exit_code, ended.output) == ("main.py\n", 0, "")


def test_a_command_reads_what_it_is_given(client: Client, running: Running) -> None:
    uuid = client.create(new()).uuid
    running.service.engine.answer("cat", Answer(echoes=True))
    assert client.execute(uuid, "cat", stdin="hello").output == "hello"
    told: list[str] = []
    client.execute(uuid, "cat", stdin="hello", on_output=told.append)
    assert "".join(told) == "hello"
    client.stop(uuid)
    with pytest.raises(ApiError, match="stopped"):
        client.execute(uuid, "cat", on_output=told.append)


def test_client_reads_spending_and_readiness(client: Client) -> None:
    client.create(new())
    assert client.spending(since=datetime.now(UTC) - timedelta(hours=1)).vm_count >= 1
    assert client.readiness().engine.ready


def test_credentials_are_stored_listed_and_deleted(client: Client) -> None:
    assert client.put_credential("mail", {"SECRET": "x"}, restart=True).variables == ["SECRET"]
    assert [one.name for one in client.credentials()] == ["mail"]
    client.delete_credential("mail", force=True)
    assert client.credentials() == []


def test_ssh_tokens_are_granted_and_ended(client: Client) -> None:
    uuid = client.create(new(name="login")).uuid
    assert client.grant_ssh(uuid).token != client.grant_ssh(uuid, expires_minutes=5, alone=True).token
    client.end_ssh(uuid)


def test_a_token_without_the_scope_is_refused(running: Running) -> None:
    making = running.service.token("acme", Scope.READ)
    token = asyncio.run_coroutine_threadsafe(making, running.loop).result()
    with Client(running.url, token) as reader, pytest.raises(ApiError, match="forbidden"):
        reader.create(new(name="c"))


@pytest.mark.parametrize(
    "response",
    [
        httpx2.Response(200, text="<html>"),
        httpx2.Response(502, text="Bad gateway"),
        httpx2.Response(404, json={"detail": "Not Found"}),
        httpx2.Response(200, json={"success": True, "message": "", "data": {}}),
    ],
)
def test_other_server_raises_no_answer(response: httpx2.Response) -> None:
    with Client("http://builderd", "t", transport=httpx2.MockTransport(lambda _: response)) as client:
        with pytest.raises(NoAnswer):
            client.get("x")


def test_a_stream_that_breaks_off_is_no_answer() -> None:
    cut = httpx2.Response(200, headers={"Content-Type": "text/event-stream"}, text=": ping\n\n")
    with Client("http://builderd", "t", transport=httpx2.MockTransport(lambda _: cut)) as client:
        with pytest.raises(NoAnswer, match="before the outcome"):
            client.create(new())


def test_unreachable_service_raises_no_answer() -> None:
    with Client("http://127.0.0.1:1", "t") as client, pytest.raises(NoAnswer):
        client.readiness()


def test_a_spending_cap_is_set_shown_and_lifted(running: Running, client: Client) -> None:
    made = asyncio.run_coroutine_threadsafe(running.service.token("acme", Scope.ADMIN), running.loop)
    uuid = client.create(new()).uuid
    with Client(running.url, made.result()) as admin:
        assert admin.set_spending_cap(20).applies == 20
        assert admin.set_spending_cap(5, uuid).monthly == 5
        assert (client.spending_cap().applies, client.spending_cap(uuid).applies) == (20, 5)
        assert admin.set_spending_cap(None).applies is None
    with pytest.raises(ApiError, match="scope admin"):
        client.set_spending_cap(1)
