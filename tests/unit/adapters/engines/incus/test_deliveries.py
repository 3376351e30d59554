"""Listening sockets of an instance that has just got its order, from the program that delivered it."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path
from typing import Any, cast

import pytest
from builderd.adapters.engines.incus.deliveries import Deliveries

from builderd.adapters.engines.incus import guest
from builderd.adapters.engines.incus.client import IncusClient
from builderd.adapters.engines.incus.exec_session import ExecSession
from builderd.domain.ids import BuilderId, SandboxId
from builderd.domain.sandboxes import SandboxReport, SandboxState

PORT = 8000
#: Port 8000 at any address and at the loopback address, as the kernel writes them.
OPEN, LOOPBACK = b"0: 00000000:1F40 0 0A\n", b"0: 0100007F:1F40 0 0A\n"
SCHEDSTAT = b"5000000 7 2\n"
REPORT = SandboxReport(SandboxId("1"), BuilderId("b"), SandboxState.RUNNING, "10.99.0.20")


class Session:
    """The session of a program whose output comes in these pieces; it runs until ``ended`` is set."""

    def __init__(self, *pieces: bytes, errors: bytes = b"") -> None:
        self.pieces: asyncio.Queue[bytes] = asyncio.Queue()
        for piece in pieces:
            self.pieces.put_nowait(piece)
        self.errors = errors
        self.written = b""
        self.closed = False

    async def write(self, data: bytes) -> None:
        self.written += data

    async def close_input(self) -> None: ...

    async def read(self) -> bytes:
        return await self.pieces.get()

    async def read_errors(self) -> bytes:
        return self.errors

    async def close(self) -> None:
        self.closed = True


async def delivered(monkeypatch: pytest.MonkeyPatch, session: Session) -> tuple[Deliveries, bytes | None]:
    async def answer(*_: Any) -> Session:
        return session

    monkeypatch.setattr(ExecSession, "open", answer)
    deliveries = Deliveries(cast("IncusClient", None))
    told = await deliveries.deliver("s-1", b"order", "10.99.0.20", PORT)
    assert session.written == b"order"
    return deliveries, told


async def until_read(session: Session) -> None:
    while not session.pieces.empty():
        await asyncio.sleep(0)
    for _ in range(3):
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    "pieces",
    [
        (guest.DELIVERED, LOOPBACK + guest.TABLE_END, OPEN + guest.TABLE_END),
        (guest.DELIVERED + LOOPBACK + guest.TABLE_END + OPEN[:5], OPEN[5:] + guest.TABLE_END),
        (guest.DELIVERED + LOOPBACK + guest.TABLE_END + OPEN + guest.TABLE_END,),
    ],
)
async def test_last_list_is_what_listens(monkeypatch: pytest.MonkeyPatch, pieces: tuple[bytes, ...]) -> None:
    session = Session(*pieces)
    deliveries, told = await delivered(monkeypatch, session)
    assert told is None
    with deliveries.watch("s-1") as may_listen:
        await until_read(session)
        assert may_listen()
        assert deliveries.sockets("s-1") == ("10.99.0.20", frozenset({("0.0.0.0", PORT)}))
    await deliveries.close()
    assert session.closed


async def test_cpu_time_of_the_program_is_known_also_when_it_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(guest.DELIVERED + OPEN + SCHEDSTAT + guest.TABLE_END)
    deliveries, _ = await delivered(monkeypatch, session)
    await until_read(session)
    assert deliveries.cpu_seconds("s-1") == 0.005
    deliveries.end("s-1")
    assert (deliveries.cpu_seconds("s-1"), deliveries.cpu_seconds("s-2")) == (0.005, 0)
    await deliveries.close()


async def test_port_is_not_asked_for_before_it_can_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(guest.DELIVERED)
    deliveries, _ = await delivered(monkeypatch, session)
    with deliveries.watch("s-1") as may_listen:
        assert not may_listen()
        session.pieces.put_nowait(LOOPBACK + guest.TABLE_END)
        await until_read(session)
        assert not may_listen()
        assert deliveries.sockets("s-1") == ("10.99.0.20", frozenset({("127.0.0.1", PORT)}))
    await deliveries.close()


@pytest.mark.parametrize("last", [b"", b"x" * (guest.MAX_TABLE_BYTES + 1), b"0: xyz:1F40 0 0A\n" + guest.TABLE_END])
async def test_incus_is_asked_once_the_program_ends_or_says_too_much(
    monkeypatch: pytest.MonkeyPatch, last: bytes
) -> None:
    session = Session(guest.DELIVERED, OPEN + guest.TABLE_END)
    deliveries, _ = await delivered(monkeypatch, session)
    deliveries.note("s-1", REPORT)
    await until_read(session)
    assert deliveries.report("s-1") == REPORT
    session.pieces.put_nowait(last)
    await until_read(session)
    assert deliveries.sockets("s-1") is None
    assert deliveries.report("s-1") is None
    with deliveries.watch("s-1") as may_listen:
        assert may_listen()
    assert session.closed


async def test_program_that_fails_says_why_and_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(b"", errors=b"/run/builderd/order: No space left on device\n")
    deliveries, told = await delivered(monkeypatch, session)
    assert told == b"/run/builderd/order: No space left on device\n"
    assert session.closed
    assert deliveries.sockets("s-1") is None


def test_program_passes_the_order_on_and_lists_what_listens(tmp_path: Path) -> None:
    """Run it with a FIFO and tables of this test's own."""
    fifo, order = tmp_path / "order", b"x" * 200_000
    subprocess.run(["mkfifo", fifo], check=True)
    for folder in ("net", "self"):
        (tmp_path / folder).mkdir()
    (tmp_path / "self/schedstat").write_bytes(SCHEDSTAT)
    count = "sockets: used 9\nTCP: inuse {} orphan 0 tw 0 alloc 1\nUDP: inuse 0 mem 0\n"
    (tmp_path / "net/sockstat").write_text(count.format(2))
    other = b"1: 0100007F:1F41 00000000:0000 01 more\n"
    (tmp_path / "net/tcp").write_bytes(b"sl local rem st\n" + OPEN + other)
    text = guest.PROGRAMS["deliver"].replace("/run/builderd/order", str(fifo)).replace("/proc/", f"{tmp_path}/")
    with (
        subprocess.Popen(["perl", "-e", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program,
        subprocess.Popen(["cat", fifo], stdout=subprocess.PIPE) as entry,
    ):
        assert program.stdin
        assert program.stdout
        assert entry.stdout
        program.stdin.write(order)
        program.stdin.close()
        assert entry.stdout.read() == order
        listed = guest.DELIVERED + OPEN + SCHEDSTAT + guest.TABLE_END
        assert program.stdout.read(len(listed)) == listed
        (tmp_path / "net/tcp6").write_text("0: 0000000000000000FFFF00000100007F:1F40 0 0A\n")
        (tmp_path / "net/sockstat").write_text(count.format(3))
        assert program.stdout.read(len(OPEN)) == OPEN
        program.kill()
