"""Uploads are over after a while, and nothing of them stays."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tests.application import World

from builderd.domain.errors import NotFound
from builderd.domain.ids import UploadId, new_id
from builderd.domain.uploads import LIFETIME, Upload
from builderd.reconciler.sweep import sweep
from builderd.services import uploads


async def content() -> AsyncIterator[bytes]:
    yield b"abc"


async def sent(world: World) -> tuple[Upload, str]:
    application, now = world.application, world.clock.now()
    upload, signature = await application.store.write(
        lambda uow: uploads.create(uow, application.upload_rules, world.caller.tenant_id, 3, None, now)
    )
    upload, _ = await uploads.receive(application, upload, uploads.Part(0, 3), content(), None)
    return upload, signature


async def test_an_upload_is_over_after_its_time(world: World) -> None:
    upload, signature = await sent(world)
    assert upload.complete
    await sweep(world.application, ())
    assert await uploads.signed(world.application, upload.id, signature) == upload
    world.clock.move(LIFETIME.total_seconds())
    with pytest.raises(NotFound):
        await uploads.signed(world.application, upload.id, signature)
    await sweep(world.application, ())
    assert list(await world.application.uploads.ids()) == []
    assert await world.read(lambda uow: uow.uploads.get(upload.id)) is None


async def test_bytes_that_no_record_knows_are_taken_away(world: World) -> None:
    await world.application.uploads.write(UploadId(new_id()), 0, content(), 10)
    await sweep(world.application, ())
    assert list(await world.application.uploads.ids()) == []


async def test_what_is_sent_again_is_checked_again(world: World) -> None:
    upload, _ = await sent(world)
    again, received = await uploads.receive(world.application, upload, uploads.Part(0, 3), content(), None)
    assert (again.complete, received) == (True, 3)
