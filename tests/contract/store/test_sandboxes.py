"""Sandboxes as every store keeps them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.contract.store.samples import NOW, SECOND, add, add_builder, make_sandbox

from builderd.core.ids import BuilderId
from builderd.database.unit_of_work import Store
from builderd.sandboxes.model import EndCause, SandboxEnd

END = SandboxEnd(EndCause.EXITED, 3, NOW + 2 * SECOND)


async def test_every_field_of_a_sandbox_is_stored(store: Store) -> None:
    builder = await add_builder(store)
    sandbox = make_sandbox(
        builder.id, generation=4, attempt=2, ip="10.88.0.2", started_at=NOW, listening_at=NOW + SECOND, end=END
    )
    await add(store, sandbox)
    assert await store.read(lambda uow: uow.sandboxes.get(sandbox.id)) == sandbox


async def test_open_sandbox_is_the_one_without_an_end(store: Store) -> None:
    builder = await add_builder(store)
    await add_builder(store)
    ended, running = make_sandbox(builder.id, end=END), make_sandbox(builder.id, attempt=2)
    await add(store, ended, running)
    assert await store.read(lambda uow: uow.sandboxes.open_of(builder.id)) == running
    assert await store.read(lambda uow: uow.sandboxes.open_of_all([builder.id, BuilderId("none")])) == [running]
    assert await store.read(lambda uow: uow.sandboxes.open_of_all([])) == []
    await store.write(lambda uow: uow.sandboxes.save(replace(running, end=END)))
    assert await store.read(lambda uow: uow.sandboxes.open_of(builder.id)) is None
    assert await store.read(lambda uow: uow.sandboxes.get(running.id)) == replace(running, end=END)


async def test_a_builder_has_at_most_one_open_sandbox(store: Store) -> None:
    builder = await add_builder(store)
    await add(store, make_sandbox(builder.id))
    with pytest.raises(Exception, match=r"(?i)unique"):
        await add(store, make_sandbox(builder.id, attempt=2))


async def test_sandboxes_are_listed_oldest_first_of_all_runs_or_of_one(store: Store) -> None:
    builder, other = await add_builder(store), await add_builder(store)
    order = [(1, 1), (1, 2), (2, 1), (10, 1)]
    made = {key: make_sandbox(builder.id, generation=key[0], attempt=key[1], end=END) for key in order}
    await add(store, *(made[key] for key in reversed(order)))
    await add(store, make_sandbox(other.id))
    assert await store.read(lambda uow: uow.sandboxes.list(builder.id)) == [made[key] for key in order]
    assert await store.read(lambda uow: uow.sandboxes.of_generation(builder.id, 1)) == [made[1, 1], made[1, 2]]
    assert await store.read(lambda uow: uow.sandboxes.of_generation(builder.id, 3)) == []


async def test_sandboxes_of_a_run_include_open_ones_of_other_runs(store: Store) -> None:
    builder, other = await add_builder(store), await add_builder(store)
    gone, ended = make_sandbox(builder.id, end=END), make_sandbox(builder.id, generation=2, end=END)
    running, trial = (
        make_sandbox(builder.id, generation=3),
        make_sandbox(builder.id, generation=2, attempt=2, trial=True),
    )
    await add(store, gone, running, ended, trial, make_sandbox(other.id))
    assert await store.read(lambda uow: uow.sandboxes.open_or_of_generation(builder.id, 2)) == [ended, trial, running]
    assert await store.read(lambda uow: uow.sandboxes.open_of(builder.id)) == running


async def test_latest_sandboxes_and_the_last_listening_one_are_kept(store: Store) -> None:
    builder = await add_builder(store, generation=2)
    listened = {1, 3}
    long = [
        make_sandbox(
            builder.id, generation=2, attempt=number, end=END, listening_at=NOW if number in listened else None
        )
        for number in range(1, 8)
    ]
    short = [make_sandbox(builder.id, generation=1, attempt=number, end=END) for number in (1, 2, 3)]
    keep_awake = make_sandbox(builder.id, generation=2, attempt=8)
    await add(store, *long, *short, keep_awake)

    async def delete_oldest() -> int:
        return await store.write(lambda uow: uow.sandboxes.delete_oldest(3, 3))

    assert [await delete_oldest(), await delete_oldest(), await delete_oldest()] == [3, 1, 0]
    kept = await store.read(lambda uow: uow.sandboxes.list(builder.id))
    assert [(one.generation, one.attempt) for one in kept] == [(1, 1), (1, 2), (1, 3), (2, 3), (2, 6), (2, 7), (2, 8)]


async def test_old_sandboxes_expire_except_of_the_present_run(store: Store) -> None:
    builder = await add_builder(store, generation=3)
    old = [make_sandbox(builder.id, generation=run, end=replace(END, at=NOW)) for run in (1, 2, 3)]
    recent = make_sandbox(builder.id, generation=2, attempt=2, end=replace(END, at=NOW + 9 * SECOND))
    keep_awake = make_sandbox(builder.id, generation=3, attempt=2)
    await add(store, *old, recent, keep_awake)

    async def expire() -> int:
        return await store.write(lambda uow: uow.sandboxes.expire(NOW + SECOND, 1))

    assert [await expire(), await expire(), await expire()] == [1, 1, 0]
    assert await store.read(lambda uow: uow.sandboxes.list(builder.id)) == [recent, old[2], keep_awake]
