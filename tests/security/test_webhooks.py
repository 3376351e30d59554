"""SSRF attacks by webhooks: none reaches loopback, private or own addresses, and responses are bounded."""

from __future__ import annotations

import asyncio
import resource
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from tests.previews.certificates import write_certificate

from builderd.core.errors import MachineFault, machine_fault
from builderd.events.model import MAX_NOTE
from builderd.webhooks.http import MAX_RESPONSE, UNREACHABLE, HttpWebhookSender

LOOPBACK = (ip_network("127.0.0.0/8"),)
Answering = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass
class Victim:
    """A server that no webhook may reach, which counts its connections."""

    port: int = 0
    connections: int = 0
    heads: list[bytes] = field(default_factory=list)


@asynccontextmanager
async def victim(
    answer: bytes = OK,
    host: str = "127.0.0.1",
    then: Answering | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Victim]:
    seen = Victim()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.connections += 1
        try:
            seen.heads.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(answer)
            await writer.drain()
            if then is not None:
                await then(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, host, 0, ssl=tls)
    seen.port = server.sockets[0].getsockname()[1]
    async with server:
        yield seen


def own_address() -> str:
    """Return an address of this host other than loopback, if there is one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("8.8.8.8", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


LOOPBACK_SPELLINGS = [
    "127.0.0.1",
    "127.1",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "0177.0.0.1",
    "127.0.0.1.",
    "0.0.0.0",
    "0",
    "localhost",
    "LOCALHOST",
    "[::1]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]",
    "[::127.0.0.1]",
]


@pytest.mark.parametrize("name", LOOPBACK_SPELLINGS)
async def test_loopback_spellings_are_not_connected_to(name: str) -> None:
    async with victim() as seen:
        reply = await HttpWebhookSender().post(f"http://{name}:{seen.port}/", {}, b"{}")
    assert reply.status is None
    assert seen.connections == 0


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://[fd00:ec2::254]/latest/meta-data/",
        "http://[::ffff:169.254.169.254]/",
        "http://[64:ff9b::a9fe:a9fe]/",
        "http://10.64.0.1/",
        "http://192.168.0.1/",
        "http://[fe80::1]/",
    ],
)
async def test_metadata_and_private_addresses_are_not_connected_to(url: str, dialled: list[str]) -> None:
    reply = await HttpWebhookSender().post(url, {}, b"{}")
    assert (reply.status, reply.note, dialled) == (None, UNREACHABLE, [])


async def test_the_hosts_own_address_is_not_connected_to() -> None:
    sender = HttpWebhookSender()
    async with victim(host="0.0.0.0") as seen:
        assert (await sender.post(f"http://{own_address()}:{seen.port}/", {}, b"{}")).status is None
    assert seen.connections == 0


def test_the_hosts_own_public_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from builderd.webhooks import http

    sender = HttpWebhookSender()
    assert not sender.refuses("http://8.8.8.8/")
    monkeypatch.setattr(http, "_is_own", lambda address: str(address) == "8.8.8.8")
    assert sender.refuses("http://8.8.8.8/")
    assert sender.refuses("http://[64:ff9b::808:808]/")


def test_own_addresses_are_recognised() -> None:
    from builderd.core.addresses import parse
    from builderd.webhooks.http import _is_own

    for text, own in (("127.0.0.1", True), (own_address(), True), ("203.0.113.9", False)):
        address = parse(text)
        assert address is not None
        assert _is_own(address) is own


def test_the_sandbox_subnet_is_refused_within_an_allowed_network() -> None:
    sender = HttpWebhookSender((ip_network("10.0.0.0/8"),), lambda: [ip_network("10.64.8.0/21")])
    assert not sender.refuses("http://10.1.2.3/")
    assert sender.refuses("http://10.64.8.1/")
    assert sender.refuses("http://[::ffff:10.64.9.1]/")


# DNS rebinding


@pytest.fixture
def dialled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the addresses that are dialled; no connection is made."""
    import httpcore

    tried: list[str] = []

    async def connect(self: Any, host: str, *_: Any, **__: Any) -> Any:
        tried.append(host)
        raise httpcore.ConnectError("refused")

    monkeypatch.setattr(httpcore.AnyIOBackend, "connect_tcp", connect)
    return tried


def resolve(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Answer name lookups with these addresses in turn; return the list of names that were asked."""
    left, asked = list(answers), []

    def getaddrinfo(host: str, port: int, **_: Any) -> Any:
        asked.append(host)
        found = left.pop(0) if len(left) > 1 else left[0]
        return [
            (socket.AF_INET6 if ":" in one else socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in found
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


async def test_a_name_with_one_private_address_is_refused(monkeypatch: pytest.MonkeyPatch, dialled: list[str]) -> None:
    for near in ("127.0.0.1", "10.0.0.1", "::1", "fe80::1%eth0", "::ffff:10.0.0.1", "64:ff9b::a00:1"):
        resolve(monkeypatch, ["93.184.215.14", near])
        assert (await HttpWebhookSender().post("http://evil.example/", {}, b"")).status is None
    assert dialled == []


async def test_checked_address_is_connected_without_second_lookup(
    monkeypatch: pytest.MonkeyPatch, dialled: list[str]
) -> None:
    asked = resolve(monkeypatch, ["93.184.215.14"], ["127.0.0.1"])
    assert (await HttpWebhookSender().post("http://rebinding.example/", {}, b"")).status is None
    assert (asked, dialled) == (["rebinding.example"], ["93.184.215.14"])
    # The next message resolves the changed name, and is refused.
    assert (await HttpWebhookSender().post("http://rebinding.example/", {}, b"")).status is None
    assert dialled == ["93.184.215.14"]


async def test_refused_address_looks_unreachable(monkeypatch: pytest.MonkeyPatch, dialled: list[str]) -> None:
    notes = set()
    for found in (["10.0.0.1"], [], ["93.184.215.14"]):
        resolve(monkeypatch, found)
        notes.add((await HttpWebhookSender().post("http://some.example/", {}, b"")).note)
    assert notes == {UNREACHABLE}


# Responses


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(status: int) -> None:
    async with victim() as inner:
        location = f"HTTP/1.1 {status} Moved\r\nLocation: http://127.0.0.1:{inner.port}/\r\nContent-Length: 0\r\n\r\n"
        async with victim(location.encode()) as outer:
            reply = await HttpWebhookSender(LOOPBACK).post(f"http://127.0.0.1:{outer.port}/", {}, b"{}")
    assert (reply.status, outer.connections, inner.connections) == (status, 1, 0)


async def test_an_endless_response_is_cut_off() -> None:
    written = 0

    async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        while not writer.is_closing():
            writer.write(b"a" * 65_536)
            written += 65_536
            await writer.drain()

    async with victim(b"HTTP/1.1 200 OK\r\n\r\n", then=flood) as seen:
        reply = await HttpWebhookSender(LOOPBACK).post(f"http://127.0.0.1:{seen.port}/", {}, b"{}")
    assert (reply.status, len(reply.note)) == (200, MAX_NOTE)
    assert written < 100 * MAX_RESPONSE + 10_000_000


async def test_endless_response_headers_are_cut_off() -> None:
    async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not writer.is_closing():
            writer.write(b"X-Filler: " + b"a" * 1_000 + b"\r\n")
            await writer.drain()

    async with victim(b"HTTP/1.1 200 OK\r\n", then=flood) as seen:
        reply = await HttpWebhookSender(LOOPBACK).post(f"http://127.0.0.1:{seen.port}/", {}, b"{}")
    assert reply.status is None


async def test_a_slow_response_times_out() -> None:
    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not writer.is_closing():
            writer.write(b"a")
            await writer.drain()
            await asyncio.sleep(0.02)

    async with victim(b"HTTP/1.1 200 OK\r\n\r\n", then=drip) as seen:
        sender = HttpWebhookSender(LOOPBACK, timeout=0.3)
        reply = await sender.post(f"http://127.0.0.1:{seen.port}/", {}, b"{}")
    assert (reply.status, reply.note) == (None, "no answer within 0.3 seconds")


@pytest.mark.parametrize("answer", [b"", b"garbage\r\n\r\n", b"HTTP/1.1 9999 X\r\n\r\n", b"\0" * 100 + b"\r\n\r\n"])
async def test_a_response_that_is_not_http_is_an_error(answer: bytes) -> None:
    async with victim(answer) as seen:
        reply = await HttpWebhookSender(LOOPBACK).post(f"http://127.0.0.1:{seen.port}/", {}, b"{}")
    assert reply.status is None


async def test_an_untrusted_certificate_is_refused(tmp_path: Path) -> None:
    write_certificate(tmp_path / "certificate.pem", "evil")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(tmp_path / "certificate.pem")
    async with victim(tls=tls) as seen:
        reply = await HttpWebhookSender(LOOPBACK).post(f"https://127.0.0.1:{seen.port}/", {}, b"{}")
    assert (reply.status, seen.heads) == (None, [])


async def test_a_server_without_tls_times_out() -> None:
    async with victim() as seen:
        sender = HttpWebhookSender(LOOPBACK, timeout=0.3)
        reply = await sender.post(f"https://127.0.0.1:{seen.port}/", {}, b"{}")
    assert (reply.status, seen.heads) == (None, [])


async def test_the_message_arrives_unchanged_with_the_host_of_the_url() -> None:
    async with victim() as seen:
        url = f"http://localhost:{seen.port}/hook?a=b"
        allowed = (*LOOPBACK, ip_network("::1/128"))
        reply = await HttpWebhookSender(allowed).post(url, {"Webhook-Id": "msg_1"}, b"{}")
    assert (reply.status, reply.note) == (200, "ok")
    head = seen.heads[0].decode().lower()
    assert head.startswith("post /hook?a=b http/1.1\r\n")
    assert f"host: localhost:{seen.port}\r\n" in head
    assert "webhook-id: msg_1\r\n" in head
    assert head.count("\r\nhost:") == head.count("\r\ncontent-length:") == 1


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
async def test_a_service_without_descriptors_blames_no_receiver(name: str) -> None:
    """A failed attempt counts towards disabling the webhook; a fault of this machine must not."""
    sender = HttpWebhookSender(allow=LOOPBACK)
    async with victim() as seen:
        await sender.post(f"http://127.0.0.1:{seen.port}/", {}, b"{}")
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.socket() as lowest:
            full = lowest.fileno()
        resource.setrlimit(resource.RLIMIT_NOFILE, (full, hard))
        try:
            with pytest.raises(MachineFault, match="EMFILE"):
                await sender.post(f"http://{name}:{seen.port}/", {}, b"{}")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_receiver_that_cuts_tls_off_is_no_fault_of_this_machine(tmp_path: Path) -> None:
    """OpenSSL's errno for it, SSL_ERROR_SYSCALL, is the number of EIO."""
    assert machine_fault(ssl.SSLSyscallError(5, "Some I/O error occurred")) is None

    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.transport.abort()

    server = await asyncio.start_server(cut, "127.0.0.1", 0)
    async with server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        reply = await HttpWebhookSender(allow=LOOPBACK).post(url, {}, b"{}")
    assert reply.status is None
