"""Limits of connections, calls and rates, their headers, and turns of those that wait."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from builderd.core.errors import NoCapacity, RateLimited
from builderd.core.ids import TenantId, secret_hash
from builderd.server import limits
from builderd.server.limits import (
    CONNECTION,
    REMOTE_SANDBOX_API,
    ConnectionLimits,
    LimitedCalls,
    Limiter,
    Turns,
    credential_of,
)

ACME, OTHER = TenantId("acme"), TenantId("other")


class Line:
    """A connection."""

    def __init__(self, limiter: Limiter, address: str = "192.0.2.1", *, idle: bool = True) -> None:
        self.address, self.is_idle, self.is_closing = address, idle, False
        limiter.add(self)

    def abort(self) -> None:
        self.is_closing = True


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TRIM_SECONDS", 0.0)


# Connections


async def test_address_beyond_its_limit_loses_its_least_recently_used_idle_connections() -> None:
    limiter = Limiter(ConnectionLimits(address=3))
    busy, used, unused = Line(limiter, idle=False), Line(limiter), Line(limiter)
    limiter.begin(used, None)
    newest, other = Line(limiter), Line(limiter, "192.0.2.2")
    await asyncio.sleep(0.01)
    assert [one.is_closing for one in (busy, used, unused, newest, other)] == [False, False, True, False, False]
    assert len(limiter) == 4


# Calls


async def test_calls_in_progress_are_limited_by_address_without_a_valid_token() -> None:
    limiter = Limiter(ConnectionLimits(strangers=3, address=2))
    calls = [limiter.begin(Line(limiter), None) for _ in range(2)]
    with pytest.raises(RateLimited, match="from your address"):
        limiter.begin(Line(limiter), "guess")
    limiter.begin(Line(limiter, "192.0.2.2"), None)
    with pytest.raises(NoCapacity):
        limiter.begin(Line(limiter, "192.0.2.3"), None)
    limiter.move(calls[0], ACME)
    limiter.begin(Line(limiter), None)


def test_tenant_has_128_calls_in_progress_from_all_members() -> None:
    limiter = Limiter(REMOTE_SANDBOX_API)
    calls = [limiter.begin(Line(limiter, f"192.0.2.{number}"), "token") for number in range(129)]
    for call in calls[:128]:
        limiter.move(call, ACME)
    with pytest.raises(RateLimited, match="128 calls"):
        limiter.move(calls[128], ACME)
    with pytest.raises(RateLimited, match="128 calls"):
        limiter.begin(Line(limiter), "token")
    limiter.end(calls[0].owner)
    limiter.begin(Line(limiter), "token")


def test_only_so_many_credentials_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_KNOWN", 2)
    limiter = Limiter()
    for credential in ("a", "b", "a", "c"):
        limiter.move(limiter.begin(Line(limiter), credential), ACME)
    assert [limiter.tenant_of(one) for one in "abc"] == [ACME, None, ACME]
    limiter.forget("a")
    assert limiter.tenant_of("a") is None


# Turns


async def test_each_key_has_one_turn_in_an_iteration_in_the_order_of_the_keys() -> None:
    turns, began = Turns(2), []

    async def call(key: str) -> None:
        await turns.wait(key)
        began.append(key)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(call(key)) for key in ("a", "a", "a", "b", "c")]
        await asyncio.sleep(0)
        tasks[1].cancel()
    assert began == ["a", "b", "c", "a"]
    assert not turns._waiting


class App:
    """ASGI app that notes who began, and answers."""

    def __init__(self) -> None:
        self.began: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.began.append(scope["path"])


async def test_flood_of_an_address_waits_while_a_valid_token_has_its_turn() -> None:
    limiter, app = Limiter(), App()
    limiter.move(limiter.begin(Line(limiter), secret_hash("known")), ACME)
    served = LimitedCalls(app, limiter)
    gone = Line(limiter)

    async def call(path: str, line: Line, *headers: tuple[bytes, bytes]) -> None:
        scope = {"type": "http", "path": path, "headers": headers, "state": {CONNECTION: line}}
        await served(scope, None, None)  # type: ignore[arg-type]

    async with asyncio.TaskGroup() as group:
        for _ in range(20):
            group.create_task(call("flood", Line(limiter)))
        group.create_task(call("gone", gone))
        group.create_task(call("known", Line(limiter), (b"authorization", b"Bearer known")))
        gone.abort()
    assert app.began.index("known") <= 2
    assert app.began.count("flood") == 20
    assert "gone" not in app.began


def test_credential_is_the_token_that_is_looked_up_or_the_session_alone() -> None:
    cookie = b"a=1; builderd-session=of-a-session; b=2"
    assert credential_of([(b"cookie", cookie)]) == secret_hash("of-a-session")
    assert credential_of([(b"cookie", b"__Host-builderd=of-a-session")]) == secret_hash("of-a-session")
    assert credential_of([(b"authorization", b"bearer  of-a-token"), (b"cookie", cookie)]) == secret_hash("of-a-token")
    two = [(b"authorization", b"Bearer first"), (b"authorization", b"Bearer second")]
    assert credential_of(two) == secret_hash("first")
    assert credential_of([(b"authorization", b"Basic x"), (b"accept", b"*/*")]) is None
