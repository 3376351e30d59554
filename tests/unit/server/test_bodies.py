"""Bodies: JSON without the doors that it leaves open, and never more of one than the limit."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from collections.abc import AsyncIterator

import pytest
from fastapi import Request

from builderd.core.errors import BadRequest, TooLarge
from builderd.server import bodies
from builderd.server.bodies import check_media_type, read_body
from builderd.server.body_parser import parse_object


def refused(body: bytes) -> str:
    with pytest.raises(BadRequest) as caught:
        parse_object(body)
    return caught.value.message


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"{", "line 1, column 2"),
        (b'{"a": "\xff"}', "byte 7 is not UTF-8"),
        (b'\xef\xbb\xbf{"a": 1}', "line 1, column 1"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"a": ["\\uDFFF"]}', "surrogate"),
        (b'{"\\ud800": 1}', "surrogate"),
        (b'{"a": "tab\there"}', "control character"),
        (b'{"a": 1, "\\u0061": 2}', '"a" twice'),
    ],
)
def test_invalid_json_is_rejected_with_its_position(body: bytes, why: str) -> None:
    assert why.lower() in refused(body).lower()


def test_a_name_that_is_shown_is_cut() -> None:
    assert len(refused(b'{"%s": 1, "%s": 2}' % (b"x" * 100_000, b"x" * 100_000))) < 200


def test_surrogate_pairs_and_escaped_backslashes_are_text() -> None:
    assert parse_object(rb'{"a": "\ud83d\ude00", "b": "\\ud800"}') == {"a": "😀", "b": "\\ud800"}


def test_number_keeps_its_written_form() -> None:
    value = parse_object(b'{"a": 3.10, "b": 1E3}')
    assert value == {"a": 3.1, "b": 1000.0}
    assert (str(value["a"]), str(value["b"])) == ("3.10", "1E3")


def test_file_contents_do_not_count_as_structure() -> None:
    body = json.dumps({"files": {"a.js": '{"[,]":[{}],' * 500_000}}).encode()
    assert len(parse_object(body)["files"]["a.js"]) == 6_000_000


@pytest.mark.parametrize("body", [b'{"a":[' + b"[]," * 400_000 + b"1]}", b'{"a":[' + b'"",' * 200_000 + b"1]}"])
def test_a_body_that_would_grow_when_parsed_is_refused_before(body: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(TooLarge, match=r"too many parts: at most 100000 texts.* 500000 bytes"):
        parse_object(body)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * len(body)


def request(pieces: AsyncIterator[bytes] | list[bytes], headers: dict[str, str] | None = None) -> Request:
    """A request whose body comes in these pieces."""
    source = _listed(pieces) if isinstance(pieces, list) else pieces

    async def receive() -> dict[str, object]:
        piece = await anext(source, None)
        return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

    raw = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    return Request({"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": raw}, receive)


async def _listed(pieces: list[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def test_a_body_up_to_the_limit_is_read() -> None:
    assert (await read_body(request([b"ab", b"", b"c"]), 3)).read() == b"abc"


async def test_a_large_body_is_not_kept_in_memory() -> None:
    async def large() -> AsyncIterator[bytes]:
        for number in range(200):
            yield bytes([number]) * 100_000

    tracemalloc.start()
    body = await read_body(request(large()), 20_000_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3_000_000
    assert body.sha256 == hashlib.sha256(body.read()).hexdigest()
    assert (body.size, len(body.read()), body.read()[-1]) == (20_000_000, 20_000_000, 199)


async def test_an_announced_length_over_the_limit_is_refused_before_a_byte_is_read() -> None:
    async def untouched() -> AsyncIterator[bytes]:
        pytest.fail("the body was read")
        yield b""

    for length in ("4", "9" * 5000):
        with pytest.raises(TooLarge, match="at most 3 bytes"):
            await read_body(request(untouched(), {"Content-Length": length}), 3)


async def test_a_body_that_stalls_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    async def stalling() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(60)
        yield b"}"

    monkeypatch.setattr(bodies, "PIECE_SECONDS", 0.01)
    with pytest.raises(BadRequest, match="did not arrive in time"):
        await read_body(request(stalling()), 100)


async def test_a_body_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    async def dripping() -> AsyncIterator[bytes]:
        while True:
            await asyncio.sleep(0.002)
            yield b" "

    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.05)
    with pytest.raises(BadRequest, match="did not arrive in time"):
        await read_body(request(dripping()), 1_000_000)


@pytest.mark.parametrize(
    "media_type",
    ["application/json", "Application/JSON; charset=UTF-8", 'application/json;charset="utf-8"', "application/ld+json"],
)
def test_json_is_taken(media_type: str) -> None:
    check_media_type(request([], {"Content-Type": media_type}))
    check_media_type(request([]))
