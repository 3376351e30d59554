"""A hot command answers as the call does, uses no row that is older than its body, and holds the call's limits."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import httpx
import pytest
from tests.fakes.processes import Answer
from tests.service import MINIMAL, Service
from tests.statements import statements

from builderd.api.server import auth, hot_commands
from builderd.api.server.bodies import TINY_BYTES
from builderd.domain.ids import new_id, secret_hash
from builderd.domain.tokens import Scope
from builderd.operations.rates import Rates
from builderd.services import activity, executions, tokens, wake

BUILDERS = "/api/v1/builders"
#: A query, which the call does not look at, takes the request past the hot command.
COLD = "?cold=1"
COMMAND = {"command": "ls"}


@pytest.fixture
async def path(service: Service) -> str:
    response = await service.client(service.write).post(BUILDERS, json=MINIMAL)
    assert response.status_code == 201, response.text
    service.engine.answer("ls", Answer(3, "h\u2028ällo\n"))
    return f"{BUILDERS}/{response.json()['data']['uuid']}/exec"


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Record of the bodies that were looked for: True where one had arrived."""
    found, take = [], hot_commands.Arrived.take

    def noted(self: hot_commands.Arrived) -> bytes | None:
        body = take(self)
        found.append(body is not None)
        return body

    monkeypatch.setattr(hot_commands.Arrived, "take", noted)
    return found


def shown(response: httpx.Response) -> tuple[int, Any, dict[str, str]]:
    counted = ("x-request-id", "ratelimit", "ratelimit-remaining", "ratelimit-reset")
    headers = {name: value for name, value in response.headers.items() if name not in counted}
    return response.status_code, response.text, headers


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (json.dumps(COMMAND), "application/json"),
        (json.dumps({**COMMAND, "separate": True, "env": {"A": "b"}, "timeout": 5}), "application/json"),
        (json.dumps({**COMMAND, "stream": True}), "application/json"),
        (json.dumps(COMMAND), "text/plain"),
        ("", "application/json"),
        ("[]", "application/json"),
        ('{"command": "ls"', "application/json"),
        ('{"command": "a", "command": "b"}', "application/json"),
        (json.dumps({"command": " "}), "application/json"),
        (json.dumps({"command": "a\0b"}), "application/json"),
        (json.dumps({**COMMAND, "timeout": 0, "unknown": 1}), "application/json"),
        (json.dumps({**COMMAND, "cwd": "../x"}), "application/json"),
        (json.dumps({**COMMAND, "stdin": "x" * TINY_BYTES}), "application/json"),
    ],
)
async def test_answer_is_that_of_the_call(service: Service, path: str, content: str, kind: str) -> None:
    for secret in (service.write, service.read, service.other, "bd_unknown"):
        client = service.client(secret, **{"Content-Type": kind})
        hot, cold = await client.post(path, content=content), await client.post(path + COLD, content=content)
        assert shown(hot) == shown(cold)


async def test_a_stopped_builder_is_refused_as_by_the_call(service: Service, path: str) -> None:
    client = service.client(service.write)
    assert (await client.post(path.replace("/exec", "/stop"))).status_code == 200
    hot, cold = await client.post(path, json=COMMAND), await client.post(path + COLD, json=COMMAND)
    assert (hot.status_code, shown(hot)) == (409, shown(cold))


async def test_unknown_and_deleted_builders_are_not_found(service: Service, path: str) -> None:
    client = service.client(service.write)
    unknown = await client.post(f"{BUILDERS}/{new_id()}/exec", json=COMMAND)
    assert (await client.delete(path.removesuffix("/exec"))).status_code == 200
    deleted, cold = await client.post(path, json=COMMAND), await client.post(path + COLD, json=COMMAND)
    assert [shown(one) for one in (unknown, deleted)] == [shown(cold)] * 2
    assert cold.status_code == 404


async def test_one_command_after_the_other_makes_one_statement(
    service: Service, path: str, seen: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = service.client(service.write)
    monkeypatch.setattr(activity, "NOTICED", timedelta(hours=1))
    await client.post(path, json=COMMAND)
    for module, name in ((executions, "_find"), (wake, "awake"), (tokens, "authenticate")):
        monkeypatch.setattr(module, name, None)
    with statements(service.store) as made:
        assert (await client.post(path, json=COMMAND)).status_code == 200
    assert len([one for one in made if "FROM tokens LEFT OUTER JOIN builders" in one]) == 1
    assert seen == [True, True]


async def test_a_revoked_token_begins_nothing(service: Service, path: str) -> None:
    client = service.client(service.write)
    assert (await client.post(path, json=COMMAND)).status_code == 200
    await service.revoke(service.write)
    assert (await client.post(path, json=COMMAND)).status_code == 401


async def test_a_builder_that_was_stopped_while_the_tokens_use_was_recorded_runs_nothing(
    service: Service, path: str, seen: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write may wait for others: the row that was read before is not used."""
    client, unused = service.client(service.write), await service.token("acme", Scope.WRITE)
    monkeypatch.setattr(activity, "NOTICED", timedelta(hours=1))
    assert (await client.post(path, json=COMMAND)).status_code == 200
    accept = auth.accept

    async def accept_slowly(request: Any, token: Any, now: Any) -> Any:
        identity = await accept(request, token, now)
        assert (await client.post(path.replace("/exec", "/stop"))).status_code == 200
        return identity

    monkeypatch.setattr(hot_commands, "accept", accept_slowly)
    response = await service.client(unused).post(path, json=COMMAND)
    assert response.status_code == 409
    assert "start it first" in response.text
    assert seen == [True], "the call itself has looked for the builder"
    token = await service.application.store.read(lambda uow: uow.tokens.by_secret_hash(secret_hash(unused)))
    assert token is not None
    assert token.last_used_at is not None


class Sent:
    """Sends a request whose body comes in pieces, each when ``send`` is called."""

    def __init__(self, service: Service, path: str, length: int, *headers: tuple[bytes, bytes]) -> None:
        self._pieces: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.sent: list[Any] = []
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "client": ("10.0.0.1", 1),
            "server": ("builderd", 80),
            "headers": [
                (b"authorization", b"Bearer " + service.write.encode()),
                (b"content-length", str(length).encode()),
                *headers,
            ],
        }
        self.task = asyncio.create_task(service.app(scope, self._pieces.get, self._send))

    async def _send(self, message: Any) -> None:
        self.sent.append(message)

    def send(self, piece: bytes, *, more: bool = False) -> None:
        self._pieces.put_nowait({"type": "http.request", "body": piece, "more_body": more})

    async def status(self) -> int:
        await asyncio.wait_for(self.task, 30)
        status: int = self.sent[0]["status"]
        return status


@pytest.mark.parametrize("first", [0, 5])
async def test_a_builder_that_was_stopped_before_a_late_body_came_runs_nothing(
    service: Service, path: str, seen: list[bool], first: int
) -> None:
    """The row that was read before is not used, and no byte of the body is lost."""
    client, body = service.client(service.write), json.dumps(COMMAND).encode()
    assert (await client.post(path, json=COMMAND)).status_code == 200
    late = Sent(service, path, len(body))
    if first:
        late.send(body[:first], more=True)
    while len(seen) < 2:
        await asyncio.sleep(0.001)
    assert seen == [True, False]
    assert (await client.post(path.replace("/exec", "/stop"))).status_code == 200
    late.send(body[first:])
    assert await late.status() == 409
    assert b"start it first" in late.sent[1]["body"]


async def test_a_late_body_is_answered_and_counts_once(service: Service, path: str) -> None:
    body = json.dumps(COMMAND).encode()
    service.app.state.rates = Rates(requests=2)
    late = Sent(service, path, len(body))
    late.send(body[:1], more=True)
    await asyncio.sleep(0)
    late.send(body[1:])
    assert await late.status() == 200
    assert dict(late.sent[0]["headers"])[b"ratelimit-remaining"] == b"1"
    assert "h\u2028ällo" in late.sent[1]["body"].decode()


async def test_a_caller_without_a_token_is_refused_before_its_body_came(service: Service, path: str) -> None:
    await service.revoke(service.write)
    late = Sent(service, path, 100)
    assert await late.status() == 401


@pytest.mark.parametrize(
    ("length", "header"),
    [
        (TINY_BYTES + 1, (b"accept", b"*/*")),
        (17, (b"transfer-encoding", b"chunked")),
        (17, (b"expect", b"100-continue")),
        (17, (b"builderd-mask", b"credentials")),
    ],
)
async def test_requests_that_are_not_plain_go_on_to_the_call(
    service: Service, path: str, seen: list[bool], length: int, header: tuple[bytes, bytes]
) -> None:
    cold = Sent(service, path, length, header)
    cold.send(json.dumps(COMMAND).encode())
    assert await cold.status() == 200
    assert seen == []


async def test_a_body_that_is_longer_than_announced_goes_on_to_the_call(service: Service, path: str) -> None:
    body = json.dumps({**COMMAND, "stdin": "x" * TINY_BYTES}).encode()
    longer = Sent(service, path, 10)
    longer.send(body[:10], more=True)
    longer.send(body[10:])
    assert await longer.status() == 200


async def test_wrong_tokens_are_counted_by_address(service: Service, path: str) -> None:
    service.app.state.rates = Rates(failures=2)
    client = service.client(None)
    answers = [
        await client.post(path, json=COMMAND, headers={"Authorization": f"Bearer bd_{guess}"}) for guess in range(3)
    ]
    assert [answer.status_code for answer in answers] == [401, 401, 429]


async def test_it_is_counted_by_its_route_and_the_tokens_use_is_recorded(service: Service, path: str) -> None:
    secret = await service.token("acme", Scope.WRITE)
    response = await service.client(secret).post(path, json=COMMAND, headers={"X-Request-Id": "mine"})
    assert response.headers["X-Request-Id"] == "mine"
    text = (await service.app.state.meter.render(service.application)).decode()
    line = 'builderd_http_requests_total{method="POST",route="/api/v1/builders/{uuid}/exec",status="200"} 1.0'
    assert line in text
    token = await service.application.store.read(lambda uow: uow.tokens.by_secret_hash(secret_hash(secret)))
    assert token is not None
    assert token.last_used_at is not None
