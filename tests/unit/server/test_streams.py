"""Event streams, ranges and conditions as RFC 9110 has them, and preferences of the caller."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
from fastapi import Request
from starlette.datastructures import Headers

from builderd.core.errors import BadRequest
from builderd.files.api import Part, RangeNotSatisfiable, condition_of, is_known, part_of
from builderd.files.model import Condition
from builderd.server import streams
from builderd.server.preferences import wants_async, wants_events
from builderd.server.streams import event, stream


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


WHOLE = Part(0, 100, 100, whole=True)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("bytes=0-9", Part(0, 10, 100)),
        ("bytes=90-", Part(90, 10, 100)),
        ("bytes=90-1000", Part(90, 10, 100)),
        ("bytes=-10", Part(90, 10, 100)),
        ("bytes=-1000", Part(0, 100, 100)),
        ("bytes= 0 - 0 ", Part(0, 1, 100)),
        ("bytes=9-0", WHOLE),
        ("bytes=-", WHOLE),
        ("bytes=0-1,5-6", WHOLE),
        ("lines=0-9", WHOLE),
        ("bytes=0-9" * 100, WHOLE),
        ("bytes=" + "9" * 50 + "-", WHOLE),
        ("bytes=0x1-5", WHOLE),
        ("", WHOLE),
    ],
)
def test_a_single_range_is_honoured_and_anything_else_is_the_whole(text: str, part: Part) -> None:
    assert part_of(Headers({"Range": text}), 100, "tag") == part


@pytest.mark.parametrize(("text", "size"), [("bytes=100-", 100), ("bytes=0-0", 0), ("bytes=-0", 100), ("bytes=-5", 0)])
def test_bytes_that_do_not_exist_are_refused(text: str, size: int) -> None:
    with pytest.raises(RangeNotSatisfiable) as refused:
        part_of(Headers({"Range": text}), size, "tag")
    assert refused.value.data == {"size": size}


def test_a_range_of_another_content_is_the_whole() -> None:
    assert part_of(Headers({"Range": "bytes=0-9", "If-Range": '"other"'}), 100, "tag") == WHOLE
    assert part_of(Headers({"Range": "bytes=0-9", "If-Range": '"tag"'}), 100, "tag") == Part(0, 10, 100)
    assert part_of(Headers({"Range": "bytes=0-9", "If-Range": 'W/"tag"'}), 100, "tag") == WHOLE


def test_a_part_says_where_it_lies() -> None:
    assert Part(10, 5, 100).content_range == "bytes 10-14/100"


@pytest.mark.parametrize(
    ("text", "tags"),
    [('"a"', {"a"}), ('"a", "b,c"', {"a", "b,c"}), ("*", {"*"}), ('W/"a"', {"W/"}), ('"a" ,W/"b"', {"a", "W/"})],
)
def test_tags_are_read(text: str, tags: set[str]) -> None:
    assert condition_of(Headers({"If-Match": text})) == Condition(matches=frozenset(tags))


@pytest.mark.parametrize("text", ["", "a", '"a" "b"', '"a', '"a\x7f"', "**", "W/*"])
def test_a_condition_that_cannot_be_read_does_not_pass_for_none(text: str) -> None:
    for name in ("If-Match", "If-None-Match"):
        with pytest.raises(BadRequest, match="entity tags"):
            condition_of(Headers({name: text}))


def test_a_known_content_is_recognized_also_by_a_weak_tag() -> None:
    assert is_known(Headers({"If-None-Match": 'W/"tag"'}), "tag")
    assert is_known(Headers({"If-None-Match": "*"}), "tag")
    assert not is_known(Headers({"If-None-Match": '"other"'}), "tag")
    assert not is_known(Headers({}), "tag")


def request(*headers: tuple[str, str]) -> Request:
    return Request({"type": "http", "headers": [(name.encode(), value.encode()) for name, value in headers]})


@pytest.mark.parametrize("value", ["respond-async", "Respond-Async", "wait=10, respond-async", "respond-async; x=1"])
def test_an_answer_at_once_is_preferred(value: str) -> None:
    assert wants_async(request(("prefer", value)))
    assert wants_async(request(("prefer", "return=minimal"), ("prefer", value)))


@pytest.mark.parametrize("value", ["", "wait=10", "respond-asynchronously", "x=respond-async"])
def test_any_other_preference_waits(value: str) -> None:
    assert not wants_async(request(("prefer", value)))
    assert not wants_async(request())


@pytest.mark.parametrize(
    ("accept", "events"),
    [
        ("text/event-stream", True),
        ("Text/Event-Stream", True),
        ("text/event-stream, */*", True),
        ("text/event-stream, application/json", True),
        ("application/json, text/event-stream", False),
        ("application/json;q=0.5, text/event-stream", True),
        ("text/event-stream;q=0.5, application/json", False),
        ("text/event-stream;q=0", False),
        ("text/event-stream;q=x", False),
        ("text/event-stream;q=nan", False),
        ("application/json", False),
        ("*/*", False),
        ("", False),
    ],
)
def test_event_stream_is_chosen_by_accept_weight(accept: str, events: bool) -> None:
    assert wants_events(request(("accept", accept))) is events
