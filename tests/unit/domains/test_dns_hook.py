"""TXT records by the operator's program or by dynamic updates, and the request of the challenge path."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from builderd.domains import dns_updates
from builderd.domains.dns_updates import HookUpdates, Rfc2136Updates, TsigKey
from builderd.domains.name_servers import MAX_REPLY, HttpChallengeProbe
from builderd.previews.port import OrderFailed, ProbeReply


def hook(tmp_path: Path, script: str, seconds: float = 30) -> HookUpdates:
    program = tmp_path / "hook"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return HookUpdates(program, seconds)


async def test_it_is_called_with_words_and_without_the_services_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUILDERD_VAULT__KEY", "secret")
    script = 'for word; do echo "<$word>"; done >>{0}/said; env >>{0}/env; pwd >>{0}/at'
    made = hook(tmp_path, script.format(tmp_path))
    hostile = '$(touch /tmp/x) "; a'
    await made.add_text("_acme-challenge.apps.test", hostile)
    await made.remove_text("_acme-challenge.apps.test", "value")
    said = (tmp_path / "said").read_text().splitlines()
    assert said[:3] == ["<set>", "<_acme-challenge.apps.test>", f"<{hostile}>"]
    assert said[3:] == ["<unset>", "<_acme-challenge.apps.test>", "<value>"]
    names = {line.partition("=")[0] for line in (tmp_path / "env").read_text().splitlines()}
    assert names <= {"PATH", "HOME", "LANG", "PWD", "SHLVL", "_", "OLDPWD"}
    assert (tmp_path / "at").read_text() == "/\n/\n"


async def test_its_failure_is_reported_with_what_it_printed(tmp_path: Path) -> None:
    made = hook(tmp_path, r"printf 'first\n\033[31mzone not found\n' >&2; exit 3")
    with pytest.raises(OrderFailed, match=r"hook set failed with 3: first \[31mzone not found$"):
        await made.add_text("name", "value")
    with pytest.raises(OrderFailed, match="unset failed with 1, and printed nothing"):
        await hook(tmp_path, "exit 1").remove_text("name", "value")
    with pytest.raises(OrderFailed, match=r"cannot be started: No such file"):
        await HookUpdates(tmp_path / "none", 1).add_text("name", "value")


async def test_a_hook_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    made = hook(tmp_path, f"echo waits; sleep 1000 & echo $! >{tmp_path}/child; wait", seconds=0.5)
    begin = time.monotonic()
    with pytest.raises(OrderFailed, match=r"took more than 0\.5 s \(acme\.hook_timeout\): waits"):
        await made.add_text("name", "value")
    assert time.monotonic() - begin < 20
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 20
    while _runs(child):
        assert time.monotonic() < deadline
        os.sched_yield()


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_key_is_read_with_and_without_its_algorithm() -> None:
    assert TsigKey.parse("name:c2Vj") == TsigKey("name", "c2Vj", "hmac-sha256")
    assert TsigKey.parse("hmac-sha512:name:c2Vj") == TsigKey("name", "c2Vj", "hmac-sha512")
    for text in ("", "name", "a:b:c:d"):
        with pytest.raises(ValueError, match="name:secret"):
            TsigKey.parse(text)


async def test_a_name_server_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_updates, "TIMEOUT", 0.05)
    with pytest.raises(OrderFailed, match=r"127\.0\.0\.1 gives no answer"):
        await Rfc2136Updates("127.0.0.1:9", TsigKey("name", "c2Vj")).add_text("_acme-challenge.apps.test", "value")


PATH = "/.well-known/acme-challenge/token"


@asynccontextmanager
async def answering(reply: bytes) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server that sends this reply; its port, and the requests that it gets."""
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(reply)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1], asked


async def get(reply: bytes) -> ProbeReply:
    async with answering(reply) as (port, _):
        return await HttpChallengeProbe().get("127.0.0.1", port, "shop.example.com", PATH)


async def test_the_host_is_asked_for_at_exactly_this_address() -> None:
    async with answering(b"HTTP/1.1 200 OK\r\nServer: nginx\r\n\r\nanswer") as (port, asked):
        reply = await HttpChallengeProbe().get("127.0.0.1", port, "shop.example.com", PATH)
    assert reply == ProbeReply(200, "answer", "nginx")
    assert asked[0].startswith(f"GET {PATH} HTTP/1.1\r\nHost: shop.example.com:{port}\r\n".encode())


@pytest.mark.parametrize("reply", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1\r\n\r\n", b"HTTP/1.1 two\r\n\r\n", b"\xff" * 99])
async def test_reply_that_is_no_http_is_not_quoted(reply: bytes) -> None:
    assert await get(reply) == ProbeReply(None, error="what answers does not speak HTTP")


async def test_a_redirect_is_not_followed_and_an_endless_reply_cut_off() -> None:
    assert (await get(b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\n\r\n")).status == 302
    endless = await get(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 10 * MAX_REPLY)
    assert len(endless.body) < MAX_REPLY


async def test_closed_port_and_silence_are_reported() -> None:
    async with answering(b"") as (port, _):
        pass
    assert "refused" in (await HttpChallengeProbe().get("127.0.0.1", port, "a.example", PATH)).error

    async def keep_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(keep_silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        reply = await HttpChallengeProbe(0.05).get("127.0.0.1", port, "a.example", PATH)
    assert reply == ProbeReply(None, error="no answer within 0.05 s")
