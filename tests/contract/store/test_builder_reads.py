"""A builder and the token that asks for it are read together as they are apart."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from functools import partial

from tests.contract.store.samples import NOW, OTHER_TENANT, TENANT, make_builder, make_sandbox, make_token, make_version

from builderd.domain.builders import Builder, Desired, Status
from builderd.domain.ids import BuilderId, TokenId, new_id
from builderd.domain.prices import Billing, Segment, Sum
from builderd.domain.sandboxes import EndCause, Sandbox, SandboxEnd
from builderd.domain.tokens import Token
from builderd.domain.versions import Version, VersionSettings
from builderd.ports.store import Store, UnitOfWork
from builderd.ports.store.builder_reads import BuilderRead, CommandRead, ShownBuilder

TOKEN = make_token(last_used_at=NOW)


async def _add(store: Store, builder: Builder, *versions: Version) -> None:
    def add(uow: UnitOfWork) -> None:
        uow.builders.add(builder)
        for version in versions or (make_version(builder.id),):
            uow.versions.add(version)

    await store.write(add)


async def _read(store: Store, builder: BuilderId, max_size: int = 100, token: Token = TOKEN) -> BuilderRead | None:
    return await store.read(lambda uow: uow.builder_reads.by_secret(token.secret_hash, builder, NOW, max_size))


async def _shown(store: Store, builder: BuilderId) -> ShownBuilder | None:
    return await store.read(lambda uow: uow.builder_reads.shown(builder, NOW))


async def test_a_builder_is_shown_as_by_its_parts_also_when_it_is_deleted(store: Store) -> None:
    gone = make_builder(desired=Desired.DELETED, status=Status.DELETED, deleted_at=NOW)
    for builder in (make_builder(version=2, spare_disks=("x",)), gone):
        await _add(
            store, builder, *(make_version(builder.id, number=number) for number in range(1, builder.version + 1))
        )
        segment = Segment(TENANT.id, builder.id, Billing.RUNNING, NOW - timedelta(hours=3), None, Decimal("0.25"))
        await store.write(lambda uow, one=segment: uow.ledger.open(one))  # type: ignore[misc]
        found = await _shown(store, builder.id)

        def parts(uow: UnitOfWork, one: BuilderId = builder.id, number: int = builder.version) -> ShownBuilder:
            stored, version = uow.builders.get(one), uow.versions.get(one, number)
            assert stored is not None
            return ShownBuilder(stored, version, uow.ledger.totals([one], NOW)[one], has_backups=False)

        assert found == await store.read(parts)
        assert found is not None
        assert found.spent != Sum()
    assert await _shown(store, BuilderId(new_id())) is None


async def test_token_builder_and_version_are_read_together(store: Store) -> None:
    settings = VersionSettings(entrypoint="python3 main.py", env={"A": "b"}, credentials=("one",))
    builder = make_builder(version=2, spare_disks=("x",))
    current = make_version(builder.id, number=2, settings=settings)
    await store.write(lambda uow: uow.tokens.add(TOKEN))
    await _add(store, builder, make_version(builder.id), current)
    await _add(store, make_builder())
    found = await _read(store, builder.id)
    assert found == BuilderRead(TOKEN, ShownBuilder(builder, current, Sum(), has_backups=False))


async def test_an_unknown_secret_reads_nothing(store: Store) -> None:
    builder = make_builder()
    await _add(store, builder)
    assert await _read(store, builder.id) is None


async def test_foreign_deleted_and_unknown_builders_are_not_read(store: Store) -> None:
    await store.write(lambda uow: uow.tenants.add(OTHER_TENANT))
    foreign, deleted = make_builder(tenant_id=OTHER_TENANT.id), make_builder(desired=Desired.DELETED)
    gone = make_builder(desired=Desired.DELETED, status=Status.DELETED, deleted_at=NOW)
    await store.write(lambda uow: uow.tokens.add(TOKEN))
    for builder in (foreign, deleted, gone):
        await _add(store, builder)
    for one in (foreign.id, deleted.id, gone.id, BuilderId(new_id())):
        assert await _read(store, one) == BuilderRead(TOKEN, None)


async def test_expired_and_revoked_tokens_are_returned(store: Store) -> None:
    revoked = replace(TOKEN, id=TokenId("revoked"), revoked_at=NOW, expires_at=NOW)
    await store.write(lambda uow: uow.tokens.add(revoked))
    found = await _read(store, BuilderId("none"), token=revoked)
    assert found is not None
    assert found.token == revoked


async def test_a_large_version_is_left_out(store: Store) -> None:
    builder = make_builder()
    settings = VersionSettings(entrypoint="a", env={"A": "b" * 50}, env_file_values={"C": "d" * 50})
    await store.write(lambda uow: uow.tokens.add(TOKEN))
    await _add(store, builder, make_version(builder.id, settings=settings))
    found, whole = await _read(store, builder.id), await _read(store, builder.id, 1_000)
    assert found is not None
    assert found.shown is not None
    assert (found.shown.builder, found.shown.version) == (builder, None)
    assert whole is not None
    assert whole.shown is not None
    assert whole.shown.version is not None
    assert whole.shown.version.settings == settings
    assert await _shown(store, builder.id) == whole.shown


async def test_costs_are_the_exact_sum_of_all_months_and_the_open_segment(store: Store) -> None:
    builder = make_builder()
    await store.write(lambda uow: uow.tokens.add(TOKEN))
    await _add(store, builder)
    rate = Decimal("0.000123456789123456789")
    segment = Segment(TENANT.id, builder.id, Billing.RUNNING, NOW, None, rate)

    def spend(uow: UnitOfWork) -> None:
        for days in (90, 60, 30, 3):
            start = NOW - timedelta(days=days)
            uow.ledger.open(replace(segment, start=start, end=start + timedelta(hours=5, microseconds=7)))
        uow.ledger.open(replace(segment, start=NOW - timedelta(hours=1, microseconds=1)))

    await store.write(spend)
    found = await _read(store, builder.id)
    assert found is not None
    assert found.shown is not None
    assert found.shown.spent == (await store.read(lambda uow: uow.ledger.totals([builder.id], NOW)))[builder.id]


async def _read_for_command(store: Store, builder: BuilderId) -> CommandRead | None:
    return await store.read(lambda uow: uow.builder_reads.for_command(TOKEN.secret_hash, builder))


async def _open_of(store: Store, builder: BuilderId) -> Sandbox | None:
    return await store.read(lambda uow: uow.sandboxes.open_of(builder))


def _add_sandbox(sandbox: Sandbox, uow: UnitOfWork) -> None:
    uow.sandboxes.add(sandbox)


async def test_for_a_command_token_builder_and_open_sandbox_are_read_together(store: Store) -> None:
    builder, without, other = make_builder(spare_disks=("x",)), make_builder(), make_builder()
    now = make_sandbox(builder.id, attempt=2, started_at=NOW, release=True)
    ended = make_sandbox(builder.id, end=SandboxEnd(EndCause.STOPPED, None, NOW))
    await store.write(lambda uow: uow.tokens.add(TOKEN))
    for one in (builder, without, other):
        await _add(store, one)

    def add(uow: UnitOfWork) -> None:
        for sandbox in (ended, make_sandbox(builder.id, attempt=3, trial=True), now, make_sandbox(other.id)):
            uow.sandboxes.add(sandbox)

    await store.write(add)
    for one, sandbox in ((builder, now), (without, None)):
        assert await _read_for_command(store, one.id) == CommandRead(TOKEN, one, sandbox)
        assert sandbox == await _open_of(store, one.id)


async def test_for_a_command_foreign_and_deleted_builders_are_not_read(store: Store) -> None:
    await store.write(lambda uow: uow.tenants.add(OTHER_TENANT))
    foreign, deleted = make_builder(tenant_id=OTHER_TENANT.id), make_builder(desired=Desired.DELETED)
    revoked = replace(TOKEN, revoked_at=NOW)
    await store.write(lambda uow: uow.tokens.add(revoked))
    for builder in (foreign, deleted):
        await _add(store, builder)
        sandbox = make_sandbox(builder.id)
        await store.write(partial(_add_sandbox, sandbox))
        assert await _read_for_command(store, builder.id) == CommandRead(revoked, None, None)
    assert await store.read(lambda uow: uow.builder_reads.for_command("c" * 64, foreign.id)) is None
