"""Builders as every store keeps them."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from tests.contract.store.samples import (
    NOW,
    OTHER_TENANT,
    SECOND,
    TENANT,
    add,
    add_builder,
    make_builder,
    make_sandbox,
    save,
)

from builderd.builders.model import Builder, Candidate, Desired, Handover, JobType, Status, Visibility
from builderd.builders.store import BuilderQuery
from builderd.core.errors import NameTaken
from builderd.core.ids import BuilderId, DiskId, new_id
from builderd.database.unit_of_work import Store, UnitOfWork
from builderd.previews.model import closed_route
from builderd.sandboxes.model import EndCause, SandboxEnd

EVERYTHING = make_builder(
    job_type=JobType.ONE_TIME,
    visibility=Visibility.PRIVATE,
    version=3,
    updated_at=NOW + SECOND,
    auto_stop_interval=30,
    backup_interval_hours=24,
    desired=Desired.STOPPED,
    generation=7,
    observed_generation=6,
    status=Status.FAILED,
    status_reason="exited with code 3 \N{COLLISION SYMBOL}",
    exit_code=3,
    failure_code="start_failed",
    last_active_at=NOW + 2 * SECOND,
    candidate=Candidate(4, DiskId("filled"), opens=True),
    handover=Handover.FORWARD,
    spare_disks=(DiskId("old"), DiskId("older")),
)
GONE = {"desired": Desired.DELETED, "status": Status.DELETED, "deleted_at": NOW}


async def names(store: Store, query: BuilderQuery) -> list[str]:
    page = await store.read(lambda uow: uow.builder_lists.page(TENANT.id, query))
    return [builder.name for builder in page]


async def test_every_field_of_a_builder_is_stored(store: Store) -> None:
    await add(store, EVERYTHING)
    assert await store.read(lambda uow: uow.builders.get(EVERYTHING.id)) == EVERYTHING


async def test_saving_replaces_every_field(store: Store) -> None:
    plain = make_builder(id=EVERYTHING.id, name=EVERYTHING.name)
    await add(store, plain)
    await save(store, EVERYTHING)
    assert await store.read(lambda uow: uow.builders.get(EVERYTHING.id)) == EVERYTHING


async def test_save_of_an_unlocked_builder_is_refused(store: Store) -> None:
    builder = await add_builder(store)

    def write(uow: UnitOfWork) -> None:
        read = uow.builders.get(builder.id)
        assert read is not None
        uow.builders.save(replace(read, exit_code=4))

    with pytest.raises(RuntimeError, match="unlocked"):
        await store.write(write)
    assert await store.read(lambda uow: uow.builders.get(builder.id)) == builder


async def test_a_live_builder_is_found_by_name_by_host_and_by_its_token(store: Store) -> None:
    builder = await add_builder(store)
    await add_builder(store)
    assert await store.read(lambda uow: uow.builders.by_name(TENANT.id, builder.name)) == builder
    assert await store.read(lambda uow: uow.builders.by_host(builder.host)) == builder
    by_hosts = await store.read(lambda uow: uow.builders.by_hosts([builder.host, "other.localhost"]))
    assert by_hosts == {builder.host: builder}
    assert await store.read(lambda uow: uow.builders.by_service_token(builder.service_token)) == builder


@pytest.mark.parametrize("changes", [{"desired": Desired.DELETED}, GONE], ids=["being deleted", "deleted"])
async def test_deleted_builder_is_found_only_by_id(store: Store, changes: dict[str, object]) -> None:
    builder = await add_builder(store, **changes)
    assert await store.read(lambda uow: uow.builders.get(builder.id)) == builder
    assert await store.read(lambda uow: uow.builders.by_name(TENANT.id, builder.name)) is None
    assert await store.read(lambda uow: uow.builders.by_host(builder.host)) is None
    assert await store.read(lambda uow: uow.builders.by_hosts([builder.host])) == {}
    assert await store.read(lambda uow: uow.builders.by_service_token(builder.service_token)) is None
    assert await store.read(lambda uow: uow.builder_lists.page(TENANT.id, BuilderQuery())) == []


async def test_duplicate_name_is_refused_with_the_other_uuid(store: Store) -> None:
    first = await add_builder(store, name="app")
    with pytest.raises(NameTaken, match=first.id) as caught:
        await add_builder(store, name="app")
    assert caught.value.data == {"uuid": first.id}
    assert await names(store, BuilderQuery()) == ["app"]


async def test_a_name_is_free_again_once_its_builder_is_to_be_deleted(store: Store) -> None:
    first = await add_builder(store, name="app")
    await save(store, replace(first, desired=Desired.DELETED))
    second = await add_builder(store, name="app")
    assert await store.read(lambda uow: uow.builders.by_name(TENANT.id, "app")) == second


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (BuilderQuery(), ["b-late", "a-b", "ab", "a-early"]),
        (BuilderQuery(sort="created_at"), ["a-early", "ab", "a-b", "b-late"]),
        (BuilderQuery(sort="name"), ["a-b", "a-early", "ab", "b-late"]),
        (BuilderQuery(sort="-updated_at"), ["ab", "b-late", "a-b", "a-early"]),
        (BuilderQuery(name="ab"), ["ab"]),
        (BuilderQuery(search="a-"), ["a-b", "a-early"]),
        (BuilderQuery(search="%"), []),
        (BuilderQuery(search="/"), []),
        (BuilderQuery(name="none"), []),
        (BuilderQuery(status=Status.RUNNING), ["b-late", "a-early"]),
        (BuilderQuery(job_type=JobType.ONE_TIME), ["b-late"]),
        (BuilderQuery(status=Status.RUNNING, job_type=JobType.ALWAYS_ON), ["a-early"]),
        (BuilderQuery(page=2, per_page=3), ["a-early"]),
        (BuilderQuery(page=3, per_page=3), []),
    ],
    ids=str,
)
async def test_list_is_filtered_sorted_and_paged(store: Store, query: BuilderQuery, expected: list[str]) -> None:
    await add_builder(store, name="a-early", status=Status.RUNNING)
    await add_builder(store, name="ab", created_at=NOW + timedelta(microseconds=1), updated_at=NOW + 9 * SECOND)
    await add_builder(store, name="a-b", created_at=NOW + SECOND, updated_at=NOW + SECOND)
    late = {"created_at": NOW + 2 * SECOND, "updated_at": NOW + 2 * SECOND}
    await add_builder(store, name="b-late", **late, status=Status.RUNNING, job_type=JobType.ONE_TIME)
    await add_builder(store, name="gone", **GONE)
    assert await names(store, query) == expected


async def test_pages_have_each_builder_once_at_equal_times(store: Store) -> None:
    for _ in range(7):
        await add_builder(store)
    seen = [name for page in range(1, 5) for name in await names(store, BuilderQuery(page=page, per_page=2))]
    assert len(seen) == len(set(seen)) == 7


async def test_builders_of_another_tenant_are_not_listed(store: Store) -> None:
    await add(store, OTHER_TENANT)
    own = await add_builder(store)
    foreign = await add_builder(store, tenant_id=OTHER_TENANT.id)
    assert await store.read(lambda uow: uow.builder_lists.page(TENANT.id, BuilderQuery())) == [own]
    assert await store.read(lambda uow: uow.builders.of_tenant(TENANT.id, deleted=True)) == [own]
    assert await store.read(lambda uow: uow.builders.by_name(TENANT.id, foreign.name)) is None


async def test_builders_are_counted_by_status_without_the_deleted(store: Store) -> None:
    for status in (Status.RUNNING, Status.RUNNING, Status.CREATING):
        await add_builder(store, status=status)
    await add_builder(store, **GONE)
    counts = await store.read(lambda uow: uow.builders.count_by_status())
    assert counts == {Status.RUNNING: 2, Status.CREATING: 1}


async def test_unstorable_characters_become_replacement_characters(store: Store) -> None:
    builder: Builder = await add_builder(store, status_reason="a\0b\ud800c")
    found = await store.read(lambda uow: uow.builders.get(builder.id))
    assert found is not None
    assert found.status_reason == "a\ufffdb\ufffdc"


async def test_two_live_builders_cannot_share_a_host(store: Store) -> None:
    first = await add_builder(store)
    with pytest.raises(Exception, match=r"(?i)unique"):
        await add_builder(store, host=first.host)


async def test_builders_are_found_together(store: Store) -> None:
    one, gone = await add_builder(store), await add_builder(store, desired=Desired.DELETED, status=Status.DELETED)
    asked = [one.id, gone.id, BuilderId(new_id())]
    assert await store.read(lambda uow: uow.builders.get_all(asked)) == {one.id: one, gone.id: gone}
    assert await store.read(lambda uow: uow.builders.live_hosts()) == [one.host]
    routed = await store.read(lambda uow: uow.builders.routed([one.host, gone.host, "unknown.localhost"]))
    assert list(map(closed_route, routed)) == [closed_route(one)]
    assert closed_route(one).tenant_id == one.tenant_id
    assert await store.read(lambda uow: uow.builders.hosts()) == {one.host: one.id}
    assert await store.read(lambda uow: uow.builders.tenants()) == [one.tenant_id]


async def test_running_and_capped_builders_are_those_of_the_tenant(store: Store) -> None:
    running = await add_builder(store)
    await add_builder(store, desired=Desired.STOPPED)
    capped = await add_builder(store, desired=Desired.STOPPED, spending_cap=Decimal(5))
    await add_builder(store, desired=Desired.DELETED, spending_cap=Decimal(5))
    await add(store, OTHER_TENANT)
    await add_builder(store, tenant_id=OTHER_TENANT.id, spending_cap=Decimal(5))
    assert await store.read(lambda uow: uow.builders.running(TENANT.id)) == [running]
    assert await store.read(lambda uow: uow.builders.capped(TENANT.id)) == [capped]
    assert await store.read(lambda uow: uow.builders.any_capped(TENANT.id))


AT_REST: dict[str, Any] = {"desired": Desired.STOPPED, "status": Status.STOPPED, "observed_generation": 1}


@pytest.mark.parametrize(
    "change",
    [
        {"desired": Desired.RUNNING},
        {"desired": Desired.DELETED},
        {"status": Status.RUNNING},
        {"generation": 2},
        {"candidate": Candidate(1)},
        {"handover": Handover.AGAIN},
        {"spare_disks": (DiskId("spare"),)},
    ],
)
async def test_builder_with_something_to_do_is_restless(store: Store, change: dict[str, Any]) -> None:
    for status in (Status.STOPPED, Status.FAILED, Status.COMPLETED):
        await add_builder(store, **{**AT_REST, "status": status})
    await add_builder(store, desired=Desired.DELETED, status=Status.DELETED)
    one = await add_builder(store, **{**AT_REST, **change})
    assert await store.read(lambda uow: uow.builders.restless()) == [one.id]


async def test_builder_with_an_open_sandbox_is_restless(store: Store) -> None:
    one, other = await add_builder(store, **AT_REST), await add_builder(store, **AT_REST)
    ended = SandboxEnd(EndCause.STOPPED, 0, NOW)
    await add(store, make_sandbox(one.id), make_sandbox(other.id, end=ended))
    assert await store.read(lambda uow: uow.builders.restless()) == [one.id]
