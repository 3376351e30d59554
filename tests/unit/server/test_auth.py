"""Authentication and authorization, and the answers to calls without them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any
from unittest.mock import AsyncMock

import pytest
from tests.service import MINIMAL, Service

from builderd.core.errors import StoreUnavailable
from builderd.core.ids import secret_hash
from builderd.linux.clock import ClockReading, read_clocks
from builderd.server import rates
from builderd.server.rates import LastUses
from builderd.tokens import service as tokens
from builderd.tokens.model import Scope, Token

BUILDERS = "/api/v1/builders"


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Basic dXNlcjpwYXNz",
        "Bearer bd_unknown",
        "bd_unknown",
        "Bearer \xff\xfe",
        "Bearer " + "x" * 10_000,
        "Bearer ' OR 1=1 --",
    ],
)
async def test_without_a_valid_token_nothing_is_answered(service: Service, header: str | None) -> None:
    client = service.client(None)
    headers = [] if header is None else [(b"Authorization", header.encode("latin-1"))]
    before = await service.kept()
    for call in (
        client.get(BUILDERS, headers=headers),
        client.post(BUILDERS, json=MINIMAL, headers=headers),
        client.post(BUILDERS, content=b"no JSON", headers=headers),
        client.delete(f"{BUILDERS}/x", headers=headers),
    ):
        response = await call
        assert (response.status_code, response.json()["code"]) == (401, "unauthenticated")
        assert response.headers["www-authenticate"].startswith("Bearer")
    assert await service.kept() == before


async def test_the_scheme_is_in_any_case_of_letters(service: Service) -> None:
    response = await service.client(None).get(BUILDERS, headers={"Authorization": f"bearer {service.write}"})
    assert response.status_code == 200


async def test_a_token_stays_valid_while_the_clock_is_wrong_for_less_than_an_hour(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    application, now = service.application, service.application.clock.now()
    _, secret = await application.store.write(
        lambda uow: tokens.create(uow, "acme", "a", now, scopes=[Scope.READ], expires_at=now + timedelta(days=30))
    )
    client = service.client(secret)
    for days in (0, 400, 0):
        step = days * 86_400 * 10**9
        monkeypatch.setattr(application.clock, "_read", lambda step=step: _later(read_clocks(), step))
        assert (await client.get(BUILDERS)).status_code == 200
    assert application.clock.now() < now + timedelta(days=1)


def _later(reading: ClockReading, nanoseconds: int) -> ClockReading:
    return reading._replace(wall=reading.wall + nanoseconds)


class Records:
    """Records of last uses in a store: how many were tried, and what happens to them."""

    def __init__(self, write: Callable[[Any], Awaitable[Any]]) -> None:
        self._write = write
        self.tries = 0

    async def __call__(self, work: Any) -> Any:
        if work.__qualname__.startswith(LastUses.__name__):
            self.tries += 1
            await self.before()
        return await self._write(work)

    async def before(self) -> None:
        """Replaced by tests: raises, or waits."""


@pytest.fixture
def records(service: Service, monkeypatch: pytest.MonkeyPatch) -> Records:
    made = Records(service.application.store.write)
    monkeypatch.setattr(service.application.store, "write", made)
    return made


async def token_of(service: Service) -> Token:
    """Return the token with which the tests read."""
    token = await service.application.store.read(lambda uow: uow.tokens.by_secret_hash(secret_hash(service.read)))
    assert token is not None
    return token


async def test_a_locked_store_delays_no_read_and_its_calls_are_recorded_later(
    service: Service, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process held SQLite's lock: a neighbour's ``GET /builders`` took 15 s, for the record of its use."""
    monkeypatch.setattr(rates, "RETRY_SECONDS", 0)
    client, unlocked = service.client(service.read), asyncio.Event()

    async def locked() -> None:
        first = records.tries == 1
        await unlocked.wait()
        if first:
            raise StoreUnavailable("The database is locked.")

    monkeypatch.setattr(records, "before", locked)
    for _ in range(3):
        assert (await client.get(BUILDERS)).status_code == 200
    assert records.tries == 1, "one record at a time"
    unlocked.set()
    while service.app.state.operations.last_uses._recording:
        await asyncio.sleep(0)
    assert (await client.get(BUILDERS)).status_code == 200
    assert (await token_of(service)).calls.of_day(service.application.clock.now()) == 4


@pytest.mark.parametrize("error", [StoreUnavailable("The disk is full."), ValueError("no date")])
async def test_a_record_that_failed_is_not_repeated_by_each_call(
    service: Service,
    records: Records,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    """Each read would be a failed write and a line in the log while the disk is full."""
    monkeypatch.setattr(records, "before", AsyncMock(side_effect=error))
    client = service.client(service.read)
    for _ in range(20):
        assert (await client.get(BUILDERS)).status_code == 200
    assert records.tries == 1
    token = await token_of(service)
    assert service.app.state.operations.token_calls.pending(token.id).counts == (20,)
    lines = [record for record in caplog.records if record.name == rates.__name__]
    # The store has its own line, twice a minute, for a fault that all its callers meet.
    assert len([record for record in lines if record.levelname == "ERROR"]) == (not isinstance(error, StoreUnavailable))
    assert not [record for record in lines if record.levelname == "WARNING"]


async def test_calls_of_a_token_are_counted_without_a_write_for_each(service: Service, records: Records) -> None:
    client = service.client(service.read)
    for _ in range(5):
        assert (await client.get(BUILDERS)).status_code == 200
    assert (await client.get("/api/v1/tokens/current")).json()["data"]["calls_in_24_h"] == 6
    # The first call recorded the token's use, with itself; the others wait for the next record.
    assert records.tries == 1
    token = await token_of(service)
    assert token.calls.of_day(service.application.clock.now()) == 1
    assert (await service.client("bd_" + "x" * 43).get(BUILDERS)).status_code == 401
    assert service.app.state.operations.token_calls.pending(token.id).counts == (5,)


async def test_calls_are_counted_in_the_hour_in_which_they_were_made(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those of a token that is not used again, or by the sessions of its page alone."""
    secret, admin = await service.token("acme", Scope.READ), await service.token("acme", Scope.ADMIN)
    token = await service.store.read(lambda uow: uow.tokens.by_secret_hash(secret_hash(secret)))
    assert token is not None

    async def shown() -> int:
        listed = (await service.client(admin).get("/api/v1/tokens")).json()["data"]
        calls: int = next(one["calls_in_24_h"] for one in listed if one["id"] == token.id)
        return calls

    client = service.client(secret)
    for _ in range(5):
        assert (await client.get(BUILDERS)).status_code == 200
    assert await shown() == 5
    _move_clock(service, monkeypatch, hours=20)
    assert (await client.get(BUILDERS)).status_code == 200
    assert await shown() == 6
    _move_clock(service, monkeypatch, hours=25)
    clock = service.application.clock
    await service.store.write(lambda uow: uow.tokens.touch(token.id, clock.now()))
    assert await shown() == 1
    _move_clock(service, monkeypatch, hours=46)
    assert await shown() == 0


def _move_clock(service: Service, monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    """Let so many hours have passed since the test began."""
    step = hours * 3_600 * 10**9

    def read() -> ClockReading:
        reading = read_clocks()
        return reading._replace(wall=reading.wall + step, since_boot=reading.since_boot + step)

    monkeypatch.setattr(service.application.clock, "_read", read)


async def test_a_token_without_the_scope_to_read_reads_nothing(service: Service) -> None:
    response = await service.client(await service.token("acme", Scope.SKIP_GATES)).get(BUILDERS)
    assert (response.status_code, response.json()["code"]) == (403, "forbidden")


async def test_the_token_comes_before_the_body(service: Service) -> None:
    """A call without write scope is rejected before its body is read."""
    client = service.client(service.read)

    async def body() -> object:
        pytest.fail("the body was read")
        yield b""

    response = await client.post(BUILDERS, content=body(), headers={"Content-Type": "application/json"})  # type: ignore[arg-type]
    assert response.status_code == 403
