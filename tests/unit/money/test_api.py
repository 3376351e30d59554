"""Spending, and its caps as their tenant sets them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import httpx
import pytest
from tests.service import MINIMAL, Service

from builderd.builders.model import Builder
from builderd.core.ids import BuilderId
from builderd.database.unit_of_work import UnitOfWork
from builderd.money.model import Billing, Segment
from builderd.tokens.limits import TenantLimit, TenantLimits
from builderd.tokens.model import Scope

SPENDING = "/api/v1/builders/spending"
DAYS = "/api/v1/spending/days"


async def test_deleted_builders_still_count(client: httpx.AsyncClient) -> None:
    uuid = (await client.post("/api/v1/builders", json=MINIMAL)).json()["data"]["uuid"]
    await client.delete(f"/api/v1/builders/{uuid}")
    await client.post("/api/v1/builders", json={**MINIMAL, "resources": {"cpu": 2}})
    data = (await client.get(SPENDING)).json()["data"]
    assert (data["currency"], data["vm_count"], data["total_cost"]) == ("EUR", 2, 0.0)
    assert [one["hourly_rate"] for one in data["deployments"]] == [0.1965, 0.3165]
    assert data["deployments"][0] | {"runtime_hours": 0} == {
        "uuid": uuid,
        "name": "my-api",
        "hourly_rate": 0.1965,
        "runtime_hours": 0,
        "cost": 0.0,
    }


async def test_spending_comes_in_pages(client: httpx.AsyncClient) -> None:
    names = ["one", "two", "three"]
    for name in names:
        await client.post("/api/v1/builders", json={**MINIMAL, "name": name})
    whole = (await client.get(SPENDING)).json()
    assert whole["meta"] == {"page": 1, "per_page": 100, "total": 3}
    for number, found in enumerate((names[:2], names[2:], []), 1):
        answer = (await client.get(SPENDING, params={"page": number, "per_page": 2})).json()
        assert [one["name"] for one in answer["data"]["deployments"]] == found
        assert (answer["data"]["vm_count"], answer["meta"]["total"]) == (3, 3)


async def test_a_span_may_be_asked_for(client: httpx.AsyncClient) -> None:
    query = {"from": "2026-01-01T00:00:00Z", "to": "2026-02-01T00:00:00+01:00"}
    assert (await client.get(SPENDING, params=query)).status_code == 200


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("from=2026-01-01T00:00:00Z&to=2026-01-01T00:00:00Z", "to"),
    ],
)
async def test_a_hostile_span_is_refused(client: httpx.AsyncClient, query: str, field: str) -> None:
    response = await client.get(f"{SPENDING}?{query}")
    assert (response.status_code, list(response.json()["errors"])) == (422, [field])


async def test_days_are_those_of_this_month_up_to_today(client: httpx.AsyncClient, service: Service) -> None:
    await client.post("/api/v1/builders", json=MINIMAL)
    now = service.application.clock.now()
    answer = (await client.get(DAYS)).json()
    days = [one["day"] for one in answer["data"]["days"]]
    assert days == [f"{now:%Y-%m}-{day:02d}" for day in range(1, now.day + 1)]
    assert (answer["data"]["currency"], answer["data"]["total_cost"]) == ("EUR", 0.0)
    assert set(answer["data"]["days"][-1]) == {"day", "runtime_hours", "cost"}


async def test_days_cost_what_their_segments_cost(client: httpx.AsyncClient, service: Service) -> None:
    uuid = (await client.post("/api/v1/builders", json=MINIMAL)).json()["data"]["uuid"]
    builder = await service.store.read(lambda uow: uow.builders.get(uuid))
    assert builder is not None
    start = datetime(2026, 1, 9, 22, tzinfo=UTC)
    past = Segment(builder.tenant_id, uuid, Billing.TRIAL, start, start + timedelta(hours=5), Decimal("0.5"))
    await service.store.write(lambda uow: uow.ledger.open(past))
    found = (await client.get(f"{DAYS}?from=2026-01-08&to=2026-01-11")).json()["data"]
    assert [(one["day"][-2:], one["cost"], one["runtime_hours"]) for one in found["days"]] == [
        ("08", 0.0, 0.0),
        ("09", 1.0, 0.0),
        ("10", 1.5, 0.0),
    ]
    assert found["total_cost"] == 2.5


@pytest.mark.parametrize(
    ("query", "status", "days"),
    [
        ("from=2020-02-28&to=2020-03-02", 200, ["2020-02-28", "2020-02-29", "2020-03-01"]),
        ("from=0001-01-01&to=0001-01-02", 200, ["0001-01-01"]),
        ("from=9999-12-30&to=9999-12-31", 200, []),
    ],
)
async def test_days_may_be_any_of_the_calendar(
    client: httpx.AsyncClient, query: str, status: int, days: list[str]
) -> None:
    answer = await client.get(f"{DAYS}?{query}")
    assert answer.status_code == status
    assert [one["day"] for one in answer.json()["data"]["days"]] == days


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("from=2026-01-01&to=2026-01-01", "to"),
        ("from=2026-01-02&to=2026-01-01", "to"),
        ("from=0001-01-01&to=9999-12-31", "to"),
        ("from=2025-01-01&to=2026-01-03", "to"),
        ("to=9999-12-31", "to"),
        ("to=0001-01-01", "to"),
    ],
)
async def test_hostile_days_are_refused(client: httpx.AsyncClient, query: str, field: str) -> None:
    response = await client.get(f"{DAYS}?{query}")
    assert (response.status_code, list(response.json()["errors"])) == (422, [field])


CAP = "/api/v1/spending-cap"
BUILDERS = "/api/v1/builders"
SECOND = timedelta(seconds=1)


@pytest.fixture
async def admin(service: Service) -> httpx.AsyncClient:
    """Return a client with a token that may set limits."""
    return service.client(await service.token("acme", Scope.ADMIN))


async def create(client: httpx.AsyncClient, name: str = "my-api") -> str:
    uuid: str = (await client.post(BUILDERS, json={**MINIMAL, "name": name})).json()["data"]["uuid"]
    return uuid


async def spend(service: Service, uuid: str, amount: int) -> None:
    """So much, within a second."""
    now = service.application.clock.now()

    def write(uow: UnitOfWork) -> None:
        builder = uow.builders.get(BuilderId(uuid))
        assert isinstance(builder, Builder)
        rate = Decimal(amount * 3600)
        uow.ledger.open(Segment(builder.tenant_id, builder.id, Billing.RUNNING, now, now + SECOND, rate))

    await service.store.write(write)


def limit(service: Service, **allowance: Decimal) -> None:
    """Set a limit of the operator; the service is made anew with it."""
    tenant_limits = TenantLimits(TenantLimit(**allowance))  # type: ignore[arg-type]
    service.app.state.application = replace(service.application, tenant_limits=tenant_limits)


async def test_a_tenant_without_a_cap_sees_what_it_spent(client: httpx.AsyncClient, service: Service) -> None:
    await spend(service, await create(client), 3)
    data = (await client.get(CAP)).json()["data"]
    assert data["resets_at"].endswith("-01T00:00:00Z")
    del data["resets_at"]
    assert data == {"currency": "EUR", "monthly": None, "operator_limit": None, "applies": None, "spent": 3.0}


async def test_a_cap_is_set_shown_and_lifted(admin: httpx.AsyncClient, client: httpx.AsyncClient) -> None:
    answer = await admin.put(CAP, json={"monthly": 20.1})
    assert (answer.status_code, answer.json()["message"]) == (200, "0.00 of 20.10 EUR are spent this month.")
    data = (await client.get(CAP)).json()["data"]
    assert (data["monthly"], data["applies"]) == (20.1, 20.1)
    assert (await admin.put(CAP, json={"monthly": None})).json()["data"]["applies"] is None


async def test_a_builder_has_a_cap_of_its_own(
    admin: httpx.AsyncClient, client: httpx.AsyncClient, service: Service
) -> None:
    uuid, other = await create(client), await create(client, "other")
    await client.post(f"{BUILDERS}/{uuid}/stop")  # it would cost a cent more in a minute or two
    await spend(service, uuid, 2)
    answer = await admin.put(f"{BUILDERS}/{uuid}/spending-cap", json={"monthly": 5})
    assert (answer.json()["data"]["monthly"], answer.json()["data"]["spent"]) == (5.0, 2.0)
    assert (await client.get(f"{BUILDERS}/{uuid}/spending-cap")).json() == answer.json()
    assert (await client.get(f"{BUILDERS}/{other}/spending-cap")).json()["data"]["applies"] is None
    assert (await client.get(CAP)).json()["data"]["monthly"] is None


async def test_at_the_cap_it_is_stopped_and_creating_and_starting_are_429_until_the_next_month(
    admin: httpx.AsyncClient, client: httpx.AsyncClient, service: Service
) -> None:
    uuid = await create(client)
    await spend(service, uuid, 6)
    await admin.put(CAP, json={"monthly": 5})
    stopped = await client.post(f"{BUILDERS}/{uuid}/stop")  # waits until it has stopped, whoever wanted that
    assert stopped.json()["data"]["status"] == "stopped"
    for call in (client.post(BUILDERS, json={**MINIMAL, "name": "more"}), client.post(f"{BUILDERS}/{uuid}/start")):
        refused = await call
        assert (refused.status_code, refused.json()["code"]) == (429, "quota_exceeded")
        assert "spending cap of 5.00 EUR is reached: 6.0" in refused.json()["message"]
        assert 0 < int(refused.headers["Retry-After"]) <= 31 * 86400 + 1


async def test_operator_cap_is_shown_and_cannot_be_removed(
    admin: httpx.AsyncClient, client: httpx.AsyncClient, service: Service
) -> None:
    uuid = await create(client)
    limit(service, monthly=Decimal(10), builder_monthly=Decimal(4))
    refused = await admin.put(CAP, json={"monthly": 10.01})
    assert (refused.status_code, refused.json()["errors"]) == (
        422,
        {"monthly": ["must be at most 10.00 EUR: the operator set this limit"]},
    )
    assert (await admin.put(f"{BUILDERS}/{uuid}/spending-cap", json={"monthly": 5})).status_code == 422
    data = (await admin.put(CAP, json={"monthly": None})).json()["data"]
    assert (data["monthly"], data["operator_limit"], data["applies"]) == (None, 10.0, 10.0)
