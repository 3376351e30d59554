"""Versions as every store keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from tests.contract.store.samples import NOW, OTHER_TENANT, TENANT, add, add_builder, make_builder, make_version, save
from tests.contract.store.test_backups import _backup

from builderd.backups.model import BackupStatus
from builderd.builders.model import Desired, Status
from builderd.core.resources import Resources
from builderd.database.unit_of_work import Store, UnitOfWork
from builderd.versions.model import NO_LAYER, Isolation, Version, VersionSettings, VersionStatus

SETTINGS = VersionSettings(
    entrypoint="uvicorn main:app --host 0.0.0.0",
    port=65535,
    env={"Z_LAST": "1", "A_FIRST": 'quote " and \n line \N{SNOWMAN}', "EMPTY": ""},
    resources=Resources(cpu=0.25, memory=0.125, disk=3.3),
    isolation=Isolation.STRONG,
    credentials=("stripe", "github"),
    skip_review=True,
    skip_qa=True,
    require_qa=True,
)


async def test_every_field_of_a_version_is_stored(store: Store) -> None:
    builder = make_builder()
    version = make_version(
        builder.id,
        number=2,
        settings=SETTINGS,
        status=VersionStatus.FAILED,
        status_reason="no such package",
        layer_key=NO_LAYER,
        review_passed=True,
        qa_passed=False,
    )
    await add(store, builder, version)
    found = await store.read(lambda uow: uow.versions.get(builder.id, 2))
    assert found == version
    assert found is not None
    assert list(found.settings.env) == ["Z_LAST", "A_FIRST", "EMPTY"]


async def test_unknown_layer_key_differs_from_no_layer(store: Store) -> None:
    builder = await add_builder(store)
    found = await store.read(lambda uow: uow.versions.get(builder.id, 1))
    assert found is not None
    assert found.layer_key is None
    assert found.review_passed is None


async def test_versions_of_several_builders_are_found_at_once_without_their_input(store: Store) -> None:
    one, gone = await add_builder(store), await add_builder(store, desired=Desired.DELETED, status=Status.DELETED)
    newer = make_version(one.id, number=2)
    await add(store, replace(newer, settings=replace(newer.settings, stdin="x" * 1_000_000)))
    found = await store.read(lambda uow: uow.versions.shown([(one.id, 2), (gone.id, 1), (gone.id, 9)]))
    assert found == {one.id: newer, gone.id: make_version(gone.id)}
    assert await store.read(lambda uow: uow.versions.shown([])) == {}


async def test_versions_with_a_credential_are_the_current_ones_of_live_builders(store: Store) -> None:
    one, gone = await add_builder(store), await add_builder(store, desired=Desired.DELETED)
    await add(store, OTHER_TENANT)
    theirs = await add_builder(store, tenant_id=OTHER_TENANT.id)
    for builder in (one, gone, theirs):
        settings = replace(SETTINGS, credentials=("db_1", "other"))
        await add(store, make_version(builder.id, number=2, settings=settings))
        await save(store, replace(builder, version=2))
    for name, found in (("db_1", [one.id]), ("db%1", []), ("db", []), ("dbx1", [])):
        using = await store.read(partial(_with_credential, name=name))
        assert [version.builder_id for version in using] == found


def _with_credential(uow: UnitOfWork, name: str) -> Sequence[Version]:
    return uow.versions.current_with_credential(TENANT.id, name)


async def test_saving_replaces_every_field(store: Store) -> None:
    builder = await add_builder(store)
    version = make_version(builder.id, settings=SETTINGS, status=VersionStatus.DEPLOYED, layer_key="d" * 64)
    await store.write(lambda uow: uow.versions.save(version))
    assert await store.read(lambda uow: uow.versions.get(builder.id, 1)) == version


async def uses_bundle(store: Store, bundle_hash: str) -> bool:
    """Ask for one bundle and for several, and expect the same answer."""
    uses = await store.read(lambda uow: uow.versions.uses_bundle(bundle_hash))
    found = await store.read(lambda uow: uow.versions.used_bundles(["8" * 64, bundle_hash]))
    assert found == ({bundle_hash} if uses else set())
    return uses


async def test_bundles_of_a_tenant_are_those_of_its_live_builders_and_kept_backups(store: Store) -> None:
    builder = await add_builder(store)
    await add(store, make_version(builder.id, number=2, bundle_hash="b" * 64))
    dropped = make_version(builder.id, number=3, bundle_hash="c" * 64)
    await add(store, dropped)
    await store.write(lambda uow: uow.versions.save(replace(dropped, status=VersionStatus.DROPPED)))
    deleted = await add_builder(store)
    await add(store, make_version(deleted.id, number=2, bundle_hash="d" * 64))
    await add(store, make_version(deleted.id, number=3, bundle_hash="e" * 64))
    backup = replace(_backup(deleted), version=2)
    await store.write(lambda uow: uow.backups.add(backup))
    await save(store, replace(deleted, desired=Desired.DELETED, status=Status.DELETED, deleted_at=NOW))
    found = await store.read(lambda uow: uow.versions.bundles_of_tenant(TENANT.id))
    assert set(found) == {"a" * 64, "b" * 64, "d" * 64}
    await store.write(lambda uow: uow.backups.save(replace(backup, status=BackupStatus.FAILED)))
    found = await store.read(lambda uow: uow.versions.bundles_of_tenant(TENANT.id))
    assert set(found) == {"a" * 64, "b" * 64}
    assert not await store.read(lambda uow: uow.versions.bundles_of_tenant(OTHER_TENANT.id))


async def test_bundles_of_a_tenant_without_versions_that_are_to_be_dropped(store: Store) -> None:
    builder, other = await add_builder(store), await add_builder(store)
    for number, bundle in ((2, "b"), (3, "c")):
        await add(store, make_version(builder.id, number=number, bundle_hash=bundle * 64))
    await add(store, make_version(other.id, number=2, bundle_hash="c" * 64))

    async def without(*numbers: int) -> set[str]:
        found = await store.read(lambda uow: uow.versions.bundles_of_tenant(TENANT.id, builder.id, numbers))
        return {one[0] for one in found}

    assert await without() == {"a", "b", "c"}
    assert await without(1) == {"a", "b", "c"}, "the first version of the other builder has it"
    assert await without(2) == {"a", "c"}
    assert await without(2, 3) == {"a", "c"}, "the other builder has it"


async def test_bundle_is_in_use_while_a_live_builder_has_it(store: Store) -> None:
    builder = await add_builder(store)
    assert await uses_bundle(store, "a" * 64)
    assert not await uses_bundle(store, "9" * 64)
    going = replace(builder, desired=Desired.DELETED)
    await save(store, going)
    assert await uses_bundle(store, "a" * 64)
    await save(store, replace(going, status=Status.DELETED, deleted_at=NOW))
    assert not await uses_bundle(store, "a" * 64)


async def test_layers_that_builders_may_run_on_are_listed(store: Store) -> None:
    builder, other = await add_builder(store), await add_builder(store)
    numbered = {"1" * 64: VersionStatus.DEPLOYED, "2" * 64: VersionStatus.PENDING, "3" * 64: VersionStatus.DROPPED}
    for number, (key, status) in enumerate(numbered.items(), start=2):
        await add(store, make_version(builder.id, number=number, layer_key=key, status=status))
    await add(store, make_version(builder.id, number=9, layer_key=NO_LAYER))
    await add(store, make_version(other.id, number=2, layer_key="4" * 64))
    assert await store.read(lambda uow: uow.versions.layers()) == {"1" * 64, "2" * 64, "4" * 64}
    asked = ["1" * 64, "3" * 64, "5" * 64, NO_LAYER]
    assert await store.read(lambda uow: uow.versions.used_layers(asked)) == {"1" * 64}
    assert await store.read(lambda uow: uow.versions.used_layers([])) == set()
    await save(store, replace(other, desired=Desired.DELETED, status=Status.DELETED, deleted_at=NOW))
    assert await store.read(lambda uow: uow.versions.layers()) == {"1" * 64, "2" * 64}
