"""Event streams: their form, their heartbeats, and that they end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from builderd.api.server import streams
from builderd.api.server.streams import event, stream


def test_an_event_has_its_name_its_data_in_one_line_and_its_id() -> None:
    assert (
        event("start", {"text": "two\nlines ü"}, "7")
        == 'event: start\ndata: {"text":"two\\nlines ü"}\nid: 7\n\n'.encode()
    )


async def pieces(events: AsyncGenerator[bytes]) -> list[bytes]:
    return [bytes(piece) async for piece in stream(events).body_iterator]  # type: ignore[arg-type]


async def test_the_first_piece_is_there_before_the_first_event() -> None:
    async def events() -> AsyncGenerator[bytes]:
        yield b"one"
        yield b"two"

    assert await pieces(events()) == [b": ping\n\n", b"one", b"two"]


async def test_silence_is_filled_with_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "HEARTBEAT_SECONDS", 0.01)

    async def events() -> AsyncGenerator[bytes]:
        await asyncio.sleep(0.1)
        yield b"late"

    received = await pieces(events())
    assert received[-1] == b"late"
    assert received.count(b": ping\n\n") > 2


@pytest.mark.parametrize("busy", [False, True])
async def test_stream_ends_with_the_permission(monkeypatch: pytest.MonkeyPatch, busy: bool) -> None:
    monkeypatch.setattr(streams, "HEARTBEAT_SECONDS", 0.05)
    answers = iter([True, False])

    async def events() -> AsyncGenerator[bytes]:
        while True:
            await asyncio.sleep(0.001 if busy else 60)
            yield b"one"

    async def permitted() -> bool:
        return next(answers)

    async with asyncio.timeout(30):
        received = [piece async for piece in stream(events(), permitted=permitted).body_iterator]
    assert (b"one" in received) is busy
    assert next(answers, None) is None


async def test_disconnect_closes_the_source() -> None:
    ended = asyncio.Event()

    async def events() -> AsyncGenerator[bytes]:
        try:
            yield b"one"
            await asyncio.sleep(60)
        finally:
            ended.set()

    body = stream(events()).body_iterator
    assert isinstance(body, AsyncGenerator)
    await anext(body)
    await anext(body)
    await body.aclose()
    assert ended.is_set()
