"""A standby asks the service that works whether it is ready, and for its routes."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.bootstrap.fake_worker import DATA, answered, service

from builderd.adapters.previews.haproxy.forwarder import Target
from builderd.bootstrap import worker_calls
from builderd.bootstrap.worker_calls import NotReached, ask_readiness
from builderd.domain.errors import EngineUnavailable
from builderd.operations import proxy_header


@pytest.mark.parametrize("status", ["200 OK", "503 Service Unavailable"])
async def test_readiness_is_asked_as_by_a_client_of_the_standby(status: str) -> None:
    received = bytearray()
    async with service(answered(DATA, status), received) as target:
        assert await ask_readiness(target, "ab" * 32) == DATA
    header = proxy_header.parse(received)
    assert header is not None
    assert header.client[0] == "127.0.0.1"
    assert b"\xe0\x00\x40" + b"ab" * 32 in received[: header.size]
    assert received[header.size :].startswith(b"GET /readyz HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "takes nothing from this member"),
        (b"SSH-2.0-x\r\n", "is no builderd"),
        (b"HTTP/1.1 200 OK\r\n\r\n<html>", "is no builderd"),
        (b"x" * 200_000, "is no builderd"),
    ],
)
async def test_answer_that_is_none_of_builderd_is_described(answer: bytes, reason: str) -> None:
    async with service(answer) as target:
        with pytest.raises(EngineUnavailable, match=reason) as raised:
            await ask_readiness(target, "ab" * 32)
    assert not isinstance(raised.value, NotReached)


@pytest.mark.parametrize(
    "answer", [answered(None), answered([1]), b"HTTP/1.1 503 x\r\n\r\n{}", b"HTTP/1.1 200\r\n\r\n[]"]
)
async def test_answer_of_the_proxy_in_front_of_the_api_is_no_readiness(answer: bytes) -> None:
    async with service(answer) as target:
        with pytest.raises(EngineUnavailable, match="its API does not answer"):
            await ask_readiness(target, "ab" * 32)


async def test_port_that_is_closed_differs_from_a_service_that_is_silent(
    unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotReached, match="is not reached"):
        await ask_readiness(Target("127.0.0.1", unused_tcp_port, api=True, streams=True), "ab" * 32)
    monkeypatch.setattr(worker_calls, "LOOK_SECONDS", 0.2)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        target = Target("127.0.0.1", server.sockets[0].getsockname()[1], api=True, streams=True)
        with pytest.raises(EngineUnavailable, match="does not answer within") as raised:
            await ask_readiness(target, "ab" * 32)
    assert not isinstance(raised.value, NotReached)


async def test_service_that_vanishes_while_it_sends_its_list_is_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_calls, "LOOK_SECONDS", 0.2)

    async def vanish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n{")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(vanish, "127.0.0.1", 0) as server:
        target = Target("127.0.0.1", server.sockets[0].getsockname()[1], api=True, streams=True)
        async with asyncio.timeout(worker_calls.LIST_READ_SECONDS):
            with pytest.raises(EngineUnavailable, match=r"stopped for 0\.2 s"):
                await worker_calls.ask_routes(target, "ab" * 32, "/routes")


async def test_list_that_is_too_long_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_calls, "MAX_LIST", 2_000_000)
    async with service(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 3_000_000) as target:
        with pytest.raises(EngineUnavailable, match="is longer than 2 MB"):
            await worker_calls.ask_routes(target, "ab" * 32, "/routes")


async def test_routes_are_read_as_a_member_and_what_is_no_list_is_refused() -> None:
    received = bytearray()
    async with service(b"HTTP/1.1 200 OK\r\n\r\n{}", received) as target:
        assert await worker_calls.ask_routes(target, "ab" * 32, "/routes?since=") == b"{}"
    header = proxy_header.parse(received)
    assert header is not None
    assert b"\xe1\x00\x06routes" in received[: header.size]
    assert received[header.size :].startswith(b"GET /routes?since= HTTP/1.1\r\n")
    for answer in (b"", b"HTTP/1.1 503 x\r\n\r\n{}", b"SSH-2.0-x\r\n"):
        async with service(answer) as target:
            with pytest.raises(EngineUnavailable, match="tells no routes now"):
                await worker_calls.ask_routes(target, "ab" * 32, "/routes")
