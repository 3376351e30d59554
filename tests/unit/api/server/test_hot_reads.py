"""The hot read of a builder answers as the call does, and holds its limits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest
from tests.service import MINIMAL, Service
from tests.statements import statements

from builderd.domain.backups import Backup, BackupKind, BackupStatus
from builderd.domain.builders import Builder
from builderd.domain.ids import BackupId, BuilderId, new_id, secret_hash
from builderd.domain.prices import Billing, Segment
from builderd.domain.tokens import Scope
from builderd.operations.rates import Rates
from builderd.ports.store import UnitOfWork

BUILDERS = "/api/v1/builders"
#: A query, which the call does not look at, takes the request past the hot read.
COLD = "?cold=1"


async def created(service: Service, **more: Any) -> str:
    response = await service.client(service.write).post(BUILDERS, json={**MINIMAL, **more})
    assert response.status_code == 201, response.text
    uuid: str = response.json()["data"]["uuid"]
    return uuid


def changed(service: Service, uuid: str, change: Callable[[UnitOfWork, Builder], None]) -> Any:
    def work(uow: UnitOfWork) -> None:
        builder = uow.builders.get(BuilderId(uuid), lock=True)
        assert builder is not None
        change(uow, builder)

    return service.application.store.write(work)


def add_backups(uow: UnitOfWork, builder: Builder) -> None:
    for status, hours in ((BackupStatus.DONE, 2), (BackupStatus.FAILED, 1)):
        at = builder.created_at - timedelta(hours=hours)
        made = (BackupId(new_id()), builder.tenant_id, builder.id, builder.name, 1, BackupKind.REQUESTED)
        uow.backups.add(Backup(*made, status, "system", "me", at, error="no space"))


def add_costs(uow: UnitOfWork, builder: Builder) -> None:
    begun = builder.created_at
    segment = Segment(builder.tenant_id, builder.id, Billing.RUNNING, begun, None, Decimal("0.0123456789"))
    for days in (95, 60, 31, 1):
        at = begun - timedelta(days=days)
        uow.ledger.open(replace(segment, start=at, end=at + timedelta(hours=7, microseconds=333)))


@pytest.mark.parametrize(
    "change", [None, add_backups, add_costs], ids=["new", "with backups", "with costs of other months"]
)
async def test_answer_is_that_of_the_call(
    service: Service, change: Callable[[UnitOfWork, Builder], None] | None
) -> None:
    uuid = await created(service, env={"GREETING": 'h"ä\u2028'}, backup_interval_hours=3)
    if change is not None:
        await changed(service, uuid, change)
    for scope in (Scope.READ, Scope.WRITE, Scope.ADMIN):
        client = service.client(await service.token("acme", scope))
        hot, cold = await client.get(f"{BUILDERS}/{uuid.upper()}"), await client.get(f"{BUILDERS}/{uuid}{COLD}")
        assert (hot.status_code, _shown(hot)) == (200, _shown(cold))
        assert _headers(hot) == _headers(cold)


def _shown(response: httpx.Response) -> Any:
    """The envelope without the cost, which grows between two calls."""
    body = response.json()
    body["data"]["cost"] = {name: round(value, 1) for name, value in body["data"]["cost"].items() if name != "currency"}
    return body


def _headers(response: httpx.Response) -> Mapping[str, str]:
    counted = ("x-request-id", "ratelimit", "ratelimit-remaining", "ratelimit-reset", "content-length")
    return {name: value for name, value in response.headers.items() if name not in counted}


async def test_a_builder_is_read_by_one_statement(service: Service) -> None:
    uuid, client = await created(service), service.client(service.write)
    await client.get(f"{BUILDERS}/{uuid}")
    with statements(service.store) as seen:
        await client.get(f"{BUILDERS}/{uuid}")
    assert len([one for one in seen if "FROM tokens LEFT OUTER JOIN" in one]) == 1


async def test_foreign_unknown_and_deleted_builders_are_not_found(service: Service) -> None:
    uuid, client = await created(service), service.client(service.write)
    await created(service, name="another")
    foreign = await service.client(service.other).get(f"{BUILDERS}/{uuid}")
    unknown = await client.get(f"{BUILDERS}/{new_id()}")
    await client.delete(f"{BUILDERS}/{uuid}")
    deleted, cold = await client.get(f"{BUILDERS}/{uuid}"), await client.get(f"{BUILDERS}/{uuid}{COLD}")
    for response in (foreign, unknown, deleted):
        assert (response.status_code, response.json()) == (404, cold.json())


@pytest.mark.parametrize("header", ["Bearer bd_unknown", "Bearer \xff", "Basic dXNlcjpwYXNz", "Bearer", None])
async def test_without_a_valid_token_nothing_is_answered(service: Service, header: str | None) -> None:
    uuid, client = await created(service), service.client(None)
    headers = [] if header is None else [(b"Authorization", header.encode("latin-1"))]
    response = await client.get(f"{BUILDERS}/{uuid}", headers=headers)
    assert (response.status_code, response.json()["code"]) == (401, "unauthenticated")
    assert response.headers["www-authenticate"].startswith("Bearer")


async def test_a_revoked_token_is_refused_at_once(service: Service) -> None:
    uuid, client = await created(service), service.client(service.read)
    assert (await client.get(f"{BUILDERS}/{uuid}")).status_code == 200
    await service.revoke(service.read)
    assert (await client.get(f"{BUILDERS}/{uuid}")).status_code == 401


async def test_a_token_without_the_scope_is_refused(service: Service) -> None:
    uuid = await created(service)
    client = service.client(await service.token("acme", Scope.SKIP_GATES))
    response = await client.get(f"{BUILDERS}/{uuid}")
    assert (response.status_code, response.json()["code"]) == (403, "forbidden")


async def test_calls_count_once_against_the_rate(service: Service) -> None:
    uuid = await created(service)
    large = await created(service, name="large", env={"TEXT": "x" * 20_000})
    service.app.state.rates = Rates(requests=4)
    client = service.client(service.write)
    found = [await client.get(f"{BUILDERS}/{one}") for one in (uuid, large, uuid, large)]
    assert [response.headers["RateLimit-Remaining"] for response in found] == ["3", "2", "1", "0"]
    assert found[1].json()["data"]["env"] == {"TEXT": "x" * 20_000}
    over = await client.get(f"{BUILDERS}/{uuid}")
    assert (over.status_code, over.json()["code"]) == (429, "rate_limited")
    assert "retry-after" in over.headers


async def test_wrong_tokens_are_counted_by_address(service: Service) -> None:
    uuid = await created(service)
    service.app.state.rates = Rates(failures=2)
    client = service.client(None)
    codes = [
        (await client.get(f"{BUILDERS}/{uuid}", headers={"Authorization": f"Bearer bd_{guess}"})).status_code
        for guess in range(3)
    ]
    assert codes == [401, 401, 429]


async def test_other_methods_and_masked_answers_are_the_calls(service: Service) -> None:
    uuid, client = await created(service, env={"KEY": "v"}), service.client(service.write)
    head = await client.head(f"{BUILDERS}/{uuid}")
    assert (head.status_code, head.content) == (200, b"")
    masked = await client.get(f"{BUILDERS}/{uuid}", headers={"Builderd-Mask": "credentials"})
    assert masked.status_code == 200
    assert (await client.get(f"{BUILDERS}/{'-' * 36}")).status_code == 404


async def test_a_hot_read_has_an_id_and_is_counted_by_its_route(service: Service) -> None:
    uuid, client = await created(service), service.client(service.write)
    response = await client.get(f"{BUILDERS}/{uuid}", headers={"X-Request-Id": "mine"})
    assert response.headers["X-Request-Id"] == "mine"
    assert response.headers["Cache-Control"] == "no-store"
    text = (await service.app.state.meter.render(service.application)).decode()
    line = 'builderd_http_requests_total{method="GET",route="/api/v1/builders/{uuid}",status="200"} 1.0'
    assert line in text


async def test_the_last_use_of_the_token_is_recorded(service: Service) -> None:
    uuid, secret = await created(service), await service.token("acme", Scope.READ)
    assert (await service.client(secret).get(f"{BUILDERS}/{uuid}")).status_code == 200
    token = await service.application.store.read(lambda uow: uow.tokens.by_secret_hash(secret_hash(secret)))
    assert token is not None
    assert token.last_used_at is not None


async def test_one_tenant_reads_one_builder_at_a_time_and_a_revoked_token_takes_no_turn(service: Service) -> None:
    uuid, lists = await created(service), service.app.state.operations.lists
    client, revoked = service.client(service.write), service.client(service.read)
    for one in (client, revoked):
        assert (await one.get(f"{BUILDERS}/{uuid}")).status_code == 200
    await service.revoke(service.read)
    assert (await revoked.get(f"{BUILDERS}/{uuid}")).status_code == 401
    builder = await service.application.store.read(lambda uow: uow.builders.get(BuilderId(uuid)))
    assert builder is not None
    async with lists.one(builder.tenant_id):
        waiting = [asyncio.create_task(client.get(f"{BUILDERS}/{uuid}")) for _ in range(3)]
        # The tenant's turn is taken: its calls wait, others and its revoked token are answered.
        assert (await revoked.get(f"{BUILDERS}/{uuid}")).status_code == 401
        assert (await service.client(service.other).get(f"{BUILDERS}/{uuid}")).status_code == 404
        assert not any(one.done() for one in waiting)
    assert [response.status_code for response in await asyncio.gather(*waiting)] == [200] * 3


async def test_a_slow_disk_does_not_stop_the_loop(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    uuid, client = await created(service), service.client(service.write)
    slow, read = threading.Event(), service.store._read

    def late(work: Any) -> Any:
        assert slow.wait(20)
        return read(work)

    monkeypatch.setattr(service.store, "_read", late)
    call = asyncio.create_task(client.get(f"{BUILDERS}/{uuid}"))
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert not call.done()
    slow.set()
    assert (await call).status_code == 200
