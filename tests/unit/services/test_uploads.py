"""Uploads are over after a while, and nothing of them stays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from tests.application import World

from builderd.domain.errors import Conflict, NotFound
from builderd.domain.files import LIFETIME, Upload
from builderd.domain.ids import UploadId, new_id
from builderd.reconciler.loop.sweep import sweep
from builderd.services import bundles


async def content() -> AsyncIterator[bytes]:
    yield b"abc"


async def sent(world: World) -> tuple[Upload, str]:
    application, now = world.application, world.clock.now()
    upload, signature = await application.store.write(
        lambda uow: bundles.create(uow, application.upload_rules, world.caller, 3, None, now)
    )
    upload, _ = await bundles.receive(application, upload, bundles.Part(0, 3), content(), None)
    return upload, signature


async def test_an_upload_is_over_after_its_time(world: World) -> None:
    upload, signature = await sent(world)
    assert upload.complete
    await sweep(world.application, ())
    assert await bundles.signed(world.application, upload.id, signature) == upload
    world.clock.move(LIFETIME.total_seconds())
    with pytest.raises(NotFound):
        await bundles.signed(world.application, upload.id, signature)
    await sweep(world.application, ())
    assert list(await world.application.uploads.ids()) == []
    assert await world.read(lambda uow: uow.uploads.get(upload.id)) is None


async def test_bytes_that_no_record_knows_are_taken_away(world: World) -> None:
    await world.application.uploads.write(UploadId(new_id()), 0, content(), 10)
    await sweep(world.application, ())
    assert list(await world.application.uploads.ids()) == []


async def test_resent_part_is_checked_again(world: World) -> None:
    upload, _ = await sent(world)
    again, received = await bundles.receive(world.application, upload, bundles.Part(0, 3), content(), None)
    assert (again.complete, received) == (True, 3)


@pytest.mark.parametrize(("total", "sha256"), [(3, None), (3, "0" * 64), (5, None)])
async def test_upload_deleted_on_arrival_is_not_found(
    world: World, monkeypatch: pytest.MonkeyPatch, total: int, sha256: str | None
) -> None:
    application, now = world.application, world.clock.now()
    upload, _ = await application.store.write(
        lambda uow: bundles.create(uow, application.upload_rules, world.caller, None, None, now)
    )
    write = application.uploads.write

    async def write_and_lose(*arguments: Any) -> int:
        received = await write(*arguments)
        await bundles.delete(application, upload.tenant_id, upload.id)
        return received

    monkeypatch.setattr(application.uploads, "write", write_and_lose)
    with pytest.raises(NotFound, match="deleted"):
        await bundles.receive(application, upload, bundles.Part(0, total), content(), sha256)


async def test_part_sent_after_the_deletion_is_discarded(world: World) -> None:
    upload, _ = await sent(world)
    upload = replace(upload, complete=False)
    await bundles.delete(world.application, world.caller.tenant_id, upload.id)
    with pytest.raises(NotFound, match="deleted"):
        await bundles.receive(world.application, upload, bundles.Part(0, 3), content(), None)
    assert list(await world.application.uploads.ids()) == []


async def test_upload_taken_by_another_request_is_a_conflict(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    upload, _ = await sent(world)
    write = world.application.uploads.write

    async def write_and_lose(*arguments: Any) -> int:
        received = await write(*arguments)
        await world.application.uploads.delete(upload.id)
        return received

    monkeypatch.setattr(world.application.uploads, "write", write_and_lose)
    with pytest.raises(Conflict, match="send it again"):
        await bundles.receive(world.application, upload, bundles.Part(0, 3), content(), "0" * 64)


async def test_expired_upload_in_progress_is_swept_later(world: World) -> None:
    upload, _ = await sent(world)
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        begun.set()
        await go_on.wait()
        yield b"abc"

    sending = asyncio.create_task(
        bundles.receive(world.application, upload, bundles.Part(0, 3), slow(), None),
    )
    await begun.wait()
    world.clock.move(LIFETIME.total_seconds())
    await sweep(world.application, ())
    go_on.set()
    assert (await sending)[1] == 3
    await sweep(world.application, ())
    assert list(await world.application.uploads.ids()) == []
