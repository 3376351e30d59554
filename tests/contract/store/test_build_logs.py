"""Build logs in the store, and builds that run."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from tests.contract.store.samples import NOW, SECOND, add, add_builder, make_version

from builderd.core.ids import BuilderId
from builderd.database.unit_of_work import Store, UnitOfWork
from builderd.money.model import OpenBuild
from builderd.sandboxes.model import LogLine, LogStream


def line(text: str, seconds: int = 0) -> LogLine:
    return LogLine(NOW + seconds * SECOND, LogStream.BUILD, text)


async def add_lines(store: Store, builder: BuilderId, version: int, *texts: str) -> None:
    lines = [line(text) for text in texts]
    await store.write(lambda uow: uow.build_logs.add(builder, version, lines))


async def lines_of(store: Store, builder: BuilderId) -> list[tuple[int, LogLine]]:
    following = await store.read(lambda uow: uow.build_logs.following(builder, 0, 10))
    return [(version, one) for _, version, one in following]


async def test_lines_are_read_in_insertion_order(store: Store) -> None:
    builder, other = await add_builder(store), await add_builder(store)
    await add(store, make_version(builder.id, number=2))
    await store.write(lambda uow: uow.build_logs.add(builder.id, 1, [line("one", 5), line("two")]))
    await add_lines(store, other.id, 1, "elsewhere")
    await add_lines(store, builder.id, 2, "three")
    assert await lines_of(store, builder.id) == [
        (1, line("one", 5)),
        (1, line("two")),
        (2, line("three")),
    ]


async def test_unstorable_characters_in_build_output_are_replaced(store: Store) -> None:
    builder = await add_builder(store)
    hostile = ["nul \0 inside", "half \ud83d a pair", "", "x" * 1_000_000, "'; DROP TABLE builders; --", "\x1b[31mred"]
    await add_lines(store, builder.id, 1, *hostile)
    stored = await lines_of(store, builder.id)
    kept = [text.replace("\0", "\ufffd").replace("\ud83d", "\ufffd") for text in hostile]
    assert [one.text for _, one in stored] == kept


async def test_following_returns_later_lines_in_pages(store: Store) -> None:
    builder, other = await add_builder(store), await add_builder(store)

    async def following(after: int) -> list[tuple[int, str]]:
        found = await store.read(lambda uow: uow.build_logs.following(builder.id, after, 2))
        return [(number, one.text) for number, _, one in found]

    await add_lines(store, builder.id, 1, "one")
    await add_lines(store, other.id, 1, "elsewhere")
    ((seen, _),) = await following(0)
    await add_lines(store, builder.id, 1, "two", "three", "four")
    news = await following(seen)
    assert [text for _, text in news] == ["two", "three"]
    more = await following(news[-1][0])
    assert [text for _, text in more] == ["four"]
    assert await following(more[-1][0]) == []


async def test_start_of_the_last_lines_is_found(store: Store) -> None:
    builder, other = await add_builder(store), await add_builder(store)
    assert await store.read(lambda uow: uow.build_logs.before_last(builder.id, 2)) == (0, 0)
    lines = [line(str(number), number) for number in range(5)]
    await store.write(lambda uow: uow.build_logs.add(builder.id, 1, lines))
    await add_lines(store, other.id, 1, "elsewhere")

    async def begun(count: int | None, since: datetime | None = None) -> tuple[list[str], int]:
        after, found = await store.read(lambda uow: uow.build_logs.before_last(builder.id, count, since))
        following = await store.read(lambda uow: uow.build_logs.following(builder.id, after, 10))
        return [one.text for _, _, one in following], found

    assert await begun(0) == ([], 0)
    assert await begun(2) == (["3", "4"], 2)
    assert await begun(9) == (["0", "1", "2", "3", "4"], 5)
    assert await begun(None) == (["0", "1", "2", "3", "4"], 5)
    assert await begun(None, lines[2].time) == (["2", "3", "4"], 3)
    assert await begun(2, lines[4].time) == (["4"], 1)
    assert await begun(None, lines[4].time + SECOND) == ([], 0)


async def test_oldest_lines_expire_in_batches(store: Store) -> None:
    builder = await add_builder(store)
    lines = [line(str(number), number) for number in range(5)]
    await store.write(lambda uow: uow.build_logs.add(builder.id, 1, lines))

    async def expire() -> int:
        return await store.write(lambda uow: uow.build_logs.expire(lines[3].time, 2))

    assert [await expire(), await expire(), await expire()] == [2, 1, 0]
    assert [one.text for _, one in await lines_of(store, builder.id)] == ["3", "4"]


async def test_open_builds_are_listed_oldest_first_and_removed_once(store: Store) -> None:
    builder = await add_builder(store)
    first = OpenBuild("b", builder.tenant_id, builder.id, NOW, NOW)
    second = replace(first, id="a", started_at=NOW + SECOND, seen_at=NOW + SECOND)

    def write(uow: UnitOfWork) -> None:
        for build in (second, first):
            uow.open_builds.add(build)
        uow.open_builds.seen(first.id, NOW + 5 * SECOND)
        uow.open_builds.seen("unknown", NOW)

    await store.write(write)
    assert await store.read(lambda uow: uow.open_builds.all()) == [replace(first, seen_at=NOW + 5 * SECOND), second]
    assert await store.write(lambda uow: uow.open_builds.remove(first.id))
    assert not await store.write(lambda uow: uow.open_builds.remove(first.id))
    assert await store.read(lambda uow: uow.open_builds.all()) == [second]
