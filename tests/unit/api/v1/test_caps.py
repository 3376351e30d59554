"""Spending caps, as their tenant sets them."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest
from tests.service import MINIMAL, Service

from builderd.domain.builders import Builder
from builderd.domain.ids import BuilderId
from builderd.domain.prices import Billing, Segment
from builderd.domain.tokens import Scope
from builderd.services.limits import TenantLimit, TenantLimits
from builderd.store import UnitOfWork

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


@pytest.mark.parametrize("path", [CAP, "builder"])
async def test_a_token_that_may_only_write_sets_no_cap(client: httpx.AsyncClient, path: str) -> None:
    uuid = await create(client)
    path = f"{BUILDERS}/{uuid}/spending-cap" if path == "builder" else path
    assert (await client.put(path, json={"monthly": None})).status_code == 403


async def test_another_tenants_builder_is_not_there(
    admin: httpx.AsyncClient, client: httpx.AsyncClient, service: Service
) -> None:
    uuid = await create(client)
    stranger = service.client(await service.token("other", Scope.ADMIN))
    for call in (
        stranger.get(f"{BUILDERS}/{uuid}/spending-cap"),
        stranger.put(f"{BUILDERS}/{uuid}/spending-cap", json={"monthly": 0}),
    ):
        assert (await call).status_code == 404
    await stranger.put(CAP, json={"monthly": 0})
    assert (await admin.get(CAP)).json()["data"]["monthly"] is None


@pytest.mark.parametrize(
    "body",
    [{}, {"monthly": -1}, {"monthly": "5"}, {"monthly": True}, {"monthly": 1.001}, {"monthly": 1e300}, {"month": 1}],
)
async def test_invalid_amount_is_rejected(admin: httpx.AsyncClient, body: dict[str, Any]) -> None:
    refused = await admin.put(CAP, json=body)
    assert (refused.status_code, refused.json()["code"]) == (422, "validation_error")
    assert (await admin.get(CAP)).json()["data"]["monthly"] is None
