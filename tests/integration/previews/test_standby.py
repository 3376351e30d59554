"""A standby's real proxy in front of the one that works: what passes, what waits, and who may pass anything on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_network

import pytest
from tests.previews.proxy import App, Proxy, eventually, free_port
from tests.previews.standby import CLIENT, SECRET, Standby, dial, port_of, receiving
from tests.previews.visitor import PATIENCE, Visitor, ask, parse, read_all

from builderd.adapters.previews.haproxy.forward_config import TRIES
from builderd.adapters.previews.haproxy.forwarder import Forwarder
from builderd.adapters.previews.haproxy.options import Receiving
from builderd.adapters.previews.haproxy.receiving import SECRET_FIELD, SERVICE_FIELD
from builderd.domain.errors import EngineUnavailable
from builderd.operations import proxy_header

pytestmark = pytest.mark.haproxy


@pytest.fixture(scope="module")
def worker() -> Iterator[Proxy]:
    """The proxy of the service that works, which takes connections from 127.0.0.1 alone."""
    started = receiving(Proxy(address_connections=3))
    try:
        yield started
    finally:
        started.close()


def test_app_sees_the_client_of_the_standby(worker: Proxy, app: App, make_standby: Callable[..., Standby]) -> None:
    standby = make_standby()
    standby.lead(port_of(worker))
    host = worker.open(app)
    with dial(standby.options.proxy.port) as connection:
        seen = ask(connection, host, "/head", "X-Forwarded-For: 203.0.113.1").seen
    assert seen["x-forwarded-for"] == [CLIENT]
    with dial(standby.options.proxy.port) as connection:
        assert ask(connection, "unknown.localhost").status == 404


def test_trusted_proxy_in_front_of_a_standby_names_the_visitor_and_nobody_else_does(
    app: App, make_proxy: Callable[..., Proxy], make_standby: Callable[..., Standby]
) -> None:
    trusted = (ip_network(f"{CLIENT}/32"),)
    worker, standby = receiving(make_proxy(trusted_proxies=trusted)), make_standby(trusted_proxies=trusted)
    standby.lead(port_of(worker))
    host = worker.open(app)
    named = ("X-Forwarded-For: 198.51.100.1", "X-Forwarded-Proto: https")
    for source, seen in ((CLIENT, ("198.51.100.1", "https")), ("127.0.0.78", ("127.0.0.78", "http"))):
        with dial(standby.options.proxy.port, source) as connection:
            headers = ask(connection, host, "/head", *named).seen
        assert (headers["x-forwarded-for"], headers["x-forwarded-proto"]) == ([seen[0]], [seen[1]])


def test_clients_of_a_standby_have_limits_of_their_own(
    worker: Proxy, app: App, make_standby: Callable[..., Standby]
) -> None:
    standby = make_standby(address_connections=0)
    standby.lead(port_of(worker))
    host = worker.open(app)
    greedy = []
    try:
        for _ in range(3):
            greedy.append(dial(standby.options.proxy.port))
            assert ask(greedy[-1], host).status == 200
        with pytest.raises((OSError, AssertionError)), dial(standby.options.proxy.port) as fourth:
            ask(fourth, host)
        with dial(standby.options.proxy.port, "127.0.0.78") as other:
            assert ask(other, host).status == 200
    finally:
        for one in greedy:
            one.close()


def test_address_counts_once_by_whichever_member_it_comes(
    worker: Proxy, app: App, make_standby: Callable[..., Standby]
) -> None:
    """Passed-on connections count at the service. Otherwise a flood has the limit once for each member."""
    standbys = [make_standby(address_connections=0) for _ in range(2)]
    for standby in standbys:
        standby.lead(port_of(worker))
    host, ports = worker.open(app), [worker.options.port, *(one.options.proxy.port for one in standbys)]
    held = []
    try:
        for port in ports:
            held.append(dial(port))
            assert ask(held[-1], host).status == 200
        for port in ports:
            with pytest.raises((OSError, AssertionError)), dial(port) as fourth:
                ask(fourth, host)
            with dial(port, "127.0.0.78") as other:
                assert ask(other, host).status == 200
    finally:
        for one in held:
            one.close()


def test_standby_limits_the_connections_of_an_address_while_nobody_works(
    worker: Proxy, make_standby: Callable[..., Standby]
) -> None:
    standby = make_standby(address_connections=2)
    standby.lead(free_port())
    port = standby.options.proxy.port
    waiting, ended = [other := dial(port, "127.0.0.78")], []
    try:
        for _ in range(3):
            # Reset before or after the call that opens it has returned.
            with contextlib.suppress(ConnectionResetError):
                waiting.append(dial(port))
        if len(waiting) == 4:
            ended = select.select(waiting, (), (), PATIENCE)[0]
        assert len(waiting) - len(ended) == 3
        assert other not in ended
        # All others still wait: without a limit, all had ended together.
        standby.lead(port_of(worker))
        for one in waiting:
            if one not in ended:
                assert ask(one, "unknown.localhost").status == 404
    finally:
        for one in waiting:
            one.close()


def knock(port: int, content: bytes, source: str = "127.0.0.1") -> bytes:
    """Return what comes back for these bytes; nothing where the connection is closed."""
    try:
        with dial(port, source) as connection:
            connection.sendall(content)
            return read_all(connection)
    except ConnectionResetError:
        return b""


def forged(*fields: tuple[int, str]) -> bytes:
    """A header that claims a client, with these fields, one may be there twice."""
    plain = proxy_header.build(("203.0.113.9", 1), {})
    more = b"".join(bytes([kind]) + len(text).to_bytes(2) + text.encode() for kind, text in fields)
    body = plain[proxy_header.HEAD :] + more
    return plain[:14] + len(body).to_bytes(2) + body


def test_forged_headers_are_refused(worker: Proxy, app: App) -> None:
    """An access list of HAProxy 3.0.11 on a field of the header never ends where the value differs."""
    host, port = worker.open(app), port_of(worker)
    request = f"GET /head HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
    right, service = (SECRET_FIELD, SECRET), (SERVICE_FIELD, "http")
    assert parse(knock(port, forged(right, service) + request)).seen["x-forwarded-for"] == ["203.0.113.9"]
    for attempt in (
        forged(service),
        forged((SECRET_FIELD, "cd" * 32), service),
        forged((SECRET_FIELD, SECRET[:-1]), service),
        forged((SECRET_FIELD, "wrong"), right, service),
        forged((SECRET_FIELD, ""), service),
        forged(right),
        forged(right, (SERVICE_FIELD, "admin")),
        forged((0xEA, "x" * 200), service),
        b"PROXY TCP4 203.0.113.9 127.0.0.1 1 2\r\n",
        proxy_header.SIGNATURE + b"\x20\x00\x00\x00",
        proxy_header.SIGNATURE + b"\x21\x11\xff\xff",
        b"",
    ):
        assert knock(port, attempt + request) == b"", attempt
    # The right header from an address that is no member's.
    assert knock(port, forged(right, service) + request, CLIENT) == b""
    # At the port for visitors it is garbage, as ever.
    assert b"203.0.113.9" not in knock(worker.options.port, forged(right, service) + request)
    assert worker.visitor.get(host).status == 200


@pytest.fixture
def exchanged(worker: Proxy) -> Iterator[list[bytes]]:
    """Requests for routes that reach the service."""
    path, received = worker.previews._files.passed_routes_socket, []
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        path.chmod(0o666)
        server.listen()

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    with server.accept()[0] as one:
                        received.append(one.recv(65_536))
                        one.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")

        thread = threading.Thread(target=serve)
        thread.start()
        yield received
        server.shutdown(socket.SHUT_RDWR)
        thread.join(PATIENCE)
    path.unlink()


def test_routes_and_reports_are_for_members_with_the_secret_alone(
    worker: Proxy, exchanged: list[bytes], make_standby: Callable[..., Standby]
) -> None:
    """A client that exchanges reports learns all addresses, and may acknowledge closed routes or make up visits."""
    port, standby = port_of(worker), make_standby()
    standby.lead(port)
    request = b"POST /exchange HTTP/1.1\r\nHost: standby\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
    right, service = (SECRET_FIELD, SECRET), (SERVICE_FIELD, "routes")
    attempts = (
        b"",
        forged(service),
        forged((SECRET_FIELD, "cd" * 32), service),
        forged((SECRET_FIELD, SECRET[:-1]), service),
        forged((SECRET_FIELD, SECRET.upper()), service),
        forged((SECRET_FIELD, "wrong"), right, service),
        forged((SECRET_FIELD, ""), service),
    )
    for attempt in attempts:
        assert knock(port, attempt + request) == b"", attempt
    # A visitor and an app are no members, even with the right words. Their own ports know no such service.
    assert knock(port, forged(right, service) + request, CLIENT) == b""
    for other in (worker.options.port, standby.options.proxy.port, standby.options.api_port):
        for attempt in (b"", forged(right, service)):
            knock(other, attempt + request)
    assert exchanged == []
    assert b" 200 " in knock(port, forged(right, service) + request)
    assert b"POST /exchange" in exchanged[0]


def test_connections_of_members_without_a_header_keep_no_visitor_out(
    app: App, make_proxy: Callable[..., Proxy]
) -> None:
    worker = receiving(make_proxy(max_connections=20))
    host = worker.open(app)
    first, *more = idle = [socket.socket() for _ in range(40)]
    try:
        first.connect(("127.0.0.1", port_of(worker)))
        for one in more:
            # The kernel's queue is full, too: the last ones are not answered.
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port_of(worker)))
        assert worker.visitor.get(host).status == 200
        # They have 5 s for their header: with all of the connections, the visitor had waited for their end.
        first.setblocking(False)
        with pytest.raises(BlockingIOError):
            first.recv(1)
    finally:
        for one in idle:
            one.close()


def test_port_that_is_taken_closes_no_preview_and_opens_later(app: App, make_proxy: Callable[..., Proxy]) -> None:
    worker = make_proxy().start()
    host = worker.open(app)
    with socket.create_server(("127.0.0.1", 0)) as other:
        wanted = Receiving("127.0.0.1", other.getsockname()[1], SECRET)
        service = worker.service()
        worker.run(service.receive(wanted, ["127.0.0.1"]))
        with pytest.raises(EngineUnavailable, match="choose another port with members_port"):
            worker.run(service.start())
        service.receive_nothing()
        worker.run(service.start())
        worker.previews = service
        assert worker.visitor.get(host).status == 200
    worker.run(service.receive(wanted, ["127.0.0.1"]))
    request = f"GET /head HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
    header = forged((SECRET_FIELD, SECRET), (SERVICE_FIELD, "http"))
    assert parse(knock(wanted.port, header + request)).status == 200
    config = service._files.config
    assert SECRET in config.read_text()
    assert config.stat().st_mode & 0o777 == 0o600


def test_members_that_leave_pass_nothing_on(app: App, make_proxy: Callable[..., Proxy]) -> None:
    worker = receiving(make_proxy())
    host, port = worker.open(app), port_of(worker)
    request = f"GET /head HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
    header = forged((SECRET_FIELD, SECRET), (SERVICE_FIELD, "http"))
    for members, status in ((["127.0.0.77"], b""), (["127.0.0.77", "127.0.0.1"], b"HTTP/1.1 200")):
        worker.run(worker.previews.receive(Receiving("127.0.0.1", port, SECRET), members))
        assert knock(port, header + request)[:12] == status
    # A new secret, as after a rotation of the key.
    worker.run(worker.previews.receive(Receiving("127.0.0.1", port, "cd" * 32), members))
    assert knock(port, header + request) == b""
    assert worker.visitor.get(host).status == 200


def test_connection_waits_for_the_next_service_also_through_a_retirement(
    worker: Proxy, app: App, make_standby: Callable[..., Standby]
) -> None:
    standby = make_standby()
    host, answers = worker.open(app), []
    standby.lead(free_port())

    def visit() -> None:
        answers.append(standby.visitor.get(host).status)

    first, second = (threading.Thread(target=visit, daemon=True) for _ in range(2))
    first.start()
    time.sleep(0.3)
    standby.lead(port_of(worker))
    first.join(PATIENCE)
    assert answers == [200]
    standby.lead(free_port())
    second.start()
    time.sleep(0.3)
    standby.lead(port_of(worker))
    standby.run(standby.forwarder.retire())
    with pytest.raises(ConnectionRefusedError):
        standby.visitor.dial()
    second.join(PATIENCE)
    assert answers == [200, 200]


def test_open_visit_survives_a_restart_of_the_standby(
    worker: Proxy, app: App, make_standby: Callable[..., Standby]
) -> None:
    standby = make_standby()
    standby.lead(port_of(worker))
    host = worker.open(app)
    with standby.visitor.dial() as visit:
        assert ask(visit, host).status == 200
        successor = Forwarder(standby.forwarder._files.directory)
        standby.run(successor.run(standby.options))
        assert ask(visit, host).status == 200
        standby.forwarder = successor
        standby.lead(port_of(worker))
        assert standby.visitor.get(host).status == 200
    # The earlier proxy ends with its last visit, and leaves the sockets of the new one.
    eventually(lambda: len(list(successor._processes())) == 2)
    standby.lead(port_of(worker), is_open=False)
    assert standby.visitor.get(host).status == 503


def test_proxy_that_died_is_started_again_and_leads_where_it_led(
    worker: Proxy, app: App, make_standby: Callable[..., Standby]
) -> None:
    standby, host = make_standby(), worker.open(app)
    standby.lead(port_of(worker))
    for pid in list(standby.forwarder._processes()):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not list(standby.forwarder._processes()))
    standby.run(standby.forwarder.run(standby.options))
    assert standby.visitor.get(host).status == 200


def test_process_with_the_command_line_of_the_proxy_is_left_alone(make_standby: Callable[..., Standby]) -> None:
    standby = make_standby()
    argv = (sys.executable, "-c", "import time; print(flush=True); time.sleep(60)", "-W", "-f")
    with subprocess.Popen((*argv, str(standby.forwarder._files.config)), stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            other.stdout.readline()
            standby.run(standby.forwarder.retire())
            standby.run(standby.forwarder.run(standby.options))
            standby.run(standby.forwarder.end())
            assert other.poll() is None
        finally:
            other.kill()


def test_retirement_finds_a_proxy_whose_start_was_cancelled(make_standby: Callable[..., Standby]) -> None:
    standby = make_standby()

    async def cancel_a_start() -> None:
        await standby.forwarder.retire()
        start = asyncio.create_task(standby.forwarder.run(standby.options))
        while not list(standby.forwarder._processes()):
            await asyncio.sleep(0)
        start.cancel()
        await asyncio.wait({start})
        await standby.forwarder.retire()

    standby.run(cancel_a_start())
    with pytest.raises(ConnectionRefusedError):
        standby.visitor.dial()


def test_without_a_service_visitors_get_503_and_other_ports_a_clear_end(make_standby: Callable[..., Standby]) -> None:
    standby = make_standby(tls_port=free_port())
    page = standby.visitor.browse("any.localhost")
    assert (page.status, page.header("retry-after")) == (503, "5")
    assert "does not answer now" in page.text
    assert standby.visitor.get("any.localhost").json["code"] == "engine_unavailable"
    assert Visitor(standby.options.api_port).get("any.localhost", "/api/v1/builders").status == 503
    # The socket of a service that was killed.
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(standby.forwarder.own_socket))
    assert Visitor(standby.options.api_port).get("any.localhost", "/readyz").status == 503
    for port in (standby.options.ssh_port, standby.options.proxy.tls_port):
        assert port is not None
        began = time.monotonic()
        assert knock(port, b"hello\r\n", CLIENT) == b""
        assert time.monotonic() - began < TRIES / 2, "it does not wait"
