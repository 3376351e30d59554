"""Values for tests of the store, and calls, each a unit of work of its own, or several as the reconciler has them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from builderd.builders.model import Builder, Cause, JobType, Visibility
from builderd.core.ids import BuilderId, DiskId, TenantId, TokenId, WebhookId, new_id, new_sandbox_id
from builderd.database.unit_of_work import Store, UnitOfWork
from builderd.events.model import Event, Webhook
from builderd.money.model import Billing, Segment
from builderd.sandboxes.model import Sandbox
from builderd.tokens.model import Scope, Tenant, Token
from builderd.tokens.tenants import IdempotencyRecord
from builderd.versions.model import Version, VersionSettings


async def claim(store: Store, builder: BuilderId, owner: str, now: datetime, seconds: float = 30) -> bool:
    return await store.write(lambda uow: uow.builders.claim(builder, owner, now, now + seconds * SECOND))


async def renew(store: Store, builder: BuilderId, owner: str, now: datetime) -> bool:
    return await store.write(lambda uow: uow.builders.renew(builder, owner, now, now + 30 * SECOND))


async def holds(store: Store, builder: BuilderId, owner: str, now: datetime) -> bool:
    def look(uow: UnitOfWork) -> bool:
        stored, held = uow.builders.get(builder), uow.builders.get_held(builder, owner, now)
        assert held is None or held == stored
        return held is not None

    return await store.write(look)


async def due(store: Store, now: datetime, limit: int = 10) -> list[BuilderId]:
    return list(await store.read(lambda uow: uow.builders.due(now, limit)))


async def make_due(store: Store, builder: BuilderId, at: datetime) -> None:
    await store.write(lambda uow: uow.builders.make_due(builder, at))


async def release(store: Store, builder: BuilderId, owner: str, due_at: datetime | None) -> None:
    await store.write(lambda uow: uow.builders.release(builder, owner, due_at))


async def record(store: Store, event: Event) -> Event:
    return await store.write(lambda uow: uow.events.add(event))


async def event_ids(store: Store, builder: BuilderId, **page: int) -> list[int]:
    events = await store.read(lambda uow: uow.events.of_builder(builder, **page))
    return [event.id for event in events]


Value = Tenant | Token | Builder | Version | Sandbox | Segment | IdempotencyRecord

#: With microseconds, which both databases must keep.
NOW = datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)
SECOND = timedelta(seconds=1)
TENANT = Tenant(TenantId("aaaaaaaa-0000-4000-8000-000000000001"), "acme", NOW)
OTHER_TENANT = Tenant(TenantId("aaaaaaaa-0000-4000-8000-000000000002"), "zeta", NOW)


def make_builder(**changes: Any) -> Builder:
    builder_id = BuilderId(new_id())
    builder = Builder(
        id=builder_id,
        tenant_id=TENANT.id,
        name=f"app-{builder_id[:8]}",
        job_type=JobType.ALWAYS_ON,
        visibility=Visibility.PUBLIC,
        service_token=f"bds_{builder_id}",
        host=f"{builder_id[:8]}.localhost",
        version=1,
        disk=DiskId(new_id()),
        created_at=NOW,
        updated_at=NOW,
        cause=Cause("token ci", "created by token ci"),
    )
    return replace(builder, **changes)


def make_version(builder: BuilderId, **changes: Any) -> Version:
    version = Version(
        builder_id=builder,
        number=1,
        bundle_hash="a" * 64,
        settings=VersionSettings(entrypoint="python3 main.py"),
        created_by="token ci",
        created_at=NOW,
    )
    return replace(version, **changes)


def make_sandbox(builder: BuilderId, **changes: Any) -> Sandbox:
    sandbox = Sandbox(
        id=new_sandbox_id(), builder_id=builder, version=1, generation=1, attempt=1, created_at=NOW, disk=DiskId("disk")
    )
    return replace(sandbox, **changes)


def make_token(**changes: Any) -> Token:
    token = Token(
        id=TokenId(new_id()),
        tenant_id=TENANT.id,
        name="ci",
        secret_hash="b" * 64,
        scopes=frozenset({Scope.WRITE}),
        created_at=NOW,
    )
    return replace(token, **changes)


def make_segment(builder: BuilderId, **changes: Any) -> Segment:
    segment = Segment(TENANT.id, builder, Billing.RUNNING, start=NOW, end=None, hourly_rate=Decimal("0.1965"))
    return replace(segment, **changes)


def make_event(builder: BuilderId, **changes: Any) -> Event:
    event = Event(TENANT.id, builder, NOW, "builder.created", "token ci", "created by token ci", {"name": "app"})
    return replace(event, **changes)


def make_record(**changes: Any) -> IdempotencyRecord:
    record = IdempotencyRecord(TENANT.id, "key-1", body_hash="c" * 64, owner="one", created_at=NOW)
    return replace(record, **changes)


def make_webhook(**changes: Any) -> Webhook:
    webhook = Webhook(
        id=WebhookId(new_id()),
        tenant_id=TENANT.id,
        url="https://example.com/",
        events=("builder.*", "stage.started"),
        secret=b"\x00sealed\xff",
        created_at=NOW,
        created_by="token ci",
        place=0,
    )
    return replace(webhook, **changes)


async def add(store: Store, *values: Value) -> None:
    """All in one unit of work."""

    def write(uow: UnitOfWork) -> None:
        for value in values:
            _add(uow, value)

    await store.write(write)


async def save(store: Store, builder: Builder) -> None:
    """Save the builder over its present row."""

    def write(uow: UnitOfWork) -> None:
        uow.builders.get(builder.id, lock=True)
        uow.builders.save(builder)

    await store.write(write)


async def add_builder(store: Store, **changes: Any) -> Builder:
    """Stored, with its first version."""
    builder = make_builder(**changes)
    await add(store, builder, make_version(builder.id))
    return builder


def _add(uow: UnitOfWork, value: Value) -> None:
    match value:
        case Tenant():
            uow.tenants.add(value)
        case Token():
            uow.tokens.add(value)
        case Builder():
            uow.builders.add(value)
        case Version():
            uow.versions.add(value)
        case Sandbox():
            uow.sandboxes.add(value)
        case Segment():
            uow.ledger.open(value)
        case IdempotencyRecord():
            uow.idempotency.add(value)
