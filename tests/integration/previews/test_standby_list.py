"""While no service works, a standby's real proxy leads plain visits to the running apps of its list, and nothing else.

The attacks are those by which a visitor would reach another app than the one whose host the list has, or an app that it
does not have any more.
"""

from __future__ import annotations

import base64
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from typing import Any

import pytest
from tests.previews.proxy import TOKEN, App, Proxy, eventually, free_port, new_host, route_to
from tests.previews.standby import CLIENT, Standby, dial, port_of, receiving
from tests.previews.visitor import PATIENCE, ask, parse, read_all

from builderd.adapters.previews.haproxy import listed_config
from builderd.adapters.previews.haproxy.forwarder import Forwarder, Target
from builderd.adapters.previews.haproxy.route_map import encode

pytestmark = pytest.mark.haproxy


@pytest.fixture
def make_listing(make_standby: Callable[..., Standby], app: App) -> Callable[..., tuple[Standby, str]]:
    """Standbys whose list has one host, which leads to the app; nobody works, and the list may be used."""

    def make(**options: Any) -> tuple[Standby, str]:
        standby, host = make_standby(**options), new_host()
        put(standby, app, host)
        allow(standby)
        lead(standby, free_port(), listed=True)
        return standby, host

    return make


@pytest.fixture
def listing(make_listing: Callable[..., tuple[Standby, str]]) -> Iterator[tuple[Standby, str]]:
    return make_listing()  # type: ignore[return-value]


def put(standby: Standby, app: App, *hosts: str) -> None:
    standby.run(standby.forwarder.put_list({host: encode(route_to(app, host=host)) for host in hosts}))


def allow(standby: Standby, seconds: float = 60) -> None:
    standby.run(standby.forwarder.allow_list(int(time.time() + seconds)))


def lead(standby: Standby, port: int, *, listed: bool) -> None:
    standby.run(standby.forwarder.lead(Target("127.0.0.1", port, api=True, streams=not listed, listed=listed)))


def test_visits_are_served_as_by_the_service_that_works(listing: tuple[Standby, str]) -> None:
    standby, host = listing
    forged = (
        "X-Forwarded-For: 203.0.113.1",
        "X-Forwarded-Host: x",
        "X-Real-IP: 203.0.113.1",
        "X_Forwarded_For: 1.1.1.1",
    )
    with dial(standby.options.proxy.port) as visit:
        seen = ask(visit, host, "/head", *forged).seen
    assert (seen["x-forwarded-for"], seen["x-forwarded-proto"], seen["x-forwarded-host"]) == (
        [CLIENT],
        ["http"],
        [host],
    )
    assert not {"x-real-ip", "x_forwarded_for"} & seen.keys()
    wide = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nSet-Cookie: a=b; Domain=localhost; Path=/\r\n\r\n"
    path = f"/raw?{base64.urlsafe_b64encode(wide).decode()}"
    assert standby.visitor.get(host, path).header("set-cookie") == "a=b; Path=/"
    assert standby.visitor.get(host.upper() + ".:80").status == 200
    assert standby.visitor.browse(host, "/head").status == 200
    assert standby.visitor.get(host, method="HEAD").status == 200


def test_service_that_works_again_gets_all_visits(
    listing: tuple[Standby, str], make_proxy: Callable[..., Proxy], neighbour: App
) -> None:
    standby, host = listing
    worker = receiving(make_proxy())
    worker.open(neighbour, host=host)
    kept = dial(standby.options.proxy.port)
    assert ask(kept, host).json["name"] == "app"
    standby.run(standby.forwarder.allow_list(0))
    lead(standby, port_of(worker), listed=False)
    for _ in range(10):
        assert standby.visitor.get(host).json["name"] == "neighbour"
    assert ask(kept, host).json["name"] == "neighbour", "also by a connection that was kept"
    kept.close()
    allow(standby)
    lead(standby, free_port(), listed=True)
    assert standby.visitor.get(host).json["name"] == "app"


def test_visitor_who_waits_for_the_service_goes_on_to_the_app(make_standby: Callable[..., Standby], app: App) -> None:
    standby, host, answers = make_standby(), new_host(), []
    put(standby, app, host)
    lead(standby, free_port(), listed=False)
    visit = threading.Thread(target=lambda: answers.append(standby.visitor.get(host).status), daemon=True)
    visit.start()
    time.sleep(0.3)
    allow(standby)
    lead(standby, free_port(), listed=True)
    visit.join(PATIENCE)
    assert answers == [200]


def test_nothing_but_a_plain_visit_of_a_listed_host_reaches_an_app(listing: tuple[Standby, str], app: App) -> None:
    standby, host = listing
    visitor = standby.visitor
    for request in (
        # Hosts that the list does not have, and forms of one that it has which mean something else.
        f"GET /head HTTP/1.1\r\nHost: {new_host()}",
        f"GET /head HTTP/1.1\r\nHost: {app.port}--{host}",
        f"GET /head HTTP/1.1\r\nHost: {host}:x",
        f"GET /head HTTP/1.1\r\nHost: x.{host}",
        f"GET /head HTTP/1.1\r\nHost: {app.address}",
        f"GET /head HTTP/1.1\r\nHost: {new_host()}\r\nX-Forwarded-Host: {host}",
        "GET /head HTTP/1.1\r\nHost: ",
        f"GET http://{host}/head HTTP/1.1\r\nHost: {host}",
        # What needs the rules of the service that works.
        f"POST /head HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0",
        f"TRACE /head HTTP/1.1\r\nHost: {host}",
        f"GET /head HTTP/1.1\r\nHost: {host}\r\nX-Service-Token: {TOKEN}",
        f"GET /head HTTP/1.1\r\nHost: {host}\r\nCookie: builderd_service_token={TOKEN}",
        f"GET /head?service_token={TOKEN} HTTP/1.1\r\nHost: {host}",
        # An app must not prove to an authority that the host is its own.
        f"GET /.well-known/acme-challenge/x HTTP/1.1\r\nHost: {host}",
    ):
        answer = visitor.send(f"{request}\r\nConnection: close\r\n\r\n".encode())
        assert answer.status == 503, request
        assert answer.header("retry-after"), request
    for broken in (
        f"CONNECT {app.address} HTTP/1.1\r\nHost: {host}",
        f"GET /head HTTP/1.1\r\nHost: {host}@{new_host()}",
        # Two hosts, and a second request hidden behind the first.
        f"GET /head HTTP/1.1\r\nHost: {new_host()}\r\nHost: {host}",
        f"POST /head HTTP/1.1\r\nHost: {host}\r\nContent-Length: 4\r\nTransfer-Encoding: chunked",
        "PRI * HTTP/2.0",
    ):
        answered = visitor.exchange(
            f"{broken}\r\nConnection: close\r\n\r\nGET /head HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        )
        assert b'"name"' not in answered, broken
    page = visitor.browse(new_host())
    assert (page.status, "does not answer now" in page.text) == (503, True)


def test_header_that_claims_another_client_is_not_believed(listing: tuple[Standby, str]) -> None:
    standby, host = listing
    with dial(standby.options.proxy.port) as visit:
        request = f"GET /head HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        visit.sendall(f"PROXY TCP4 203.0.113.9 127.0.0.1 1 2\r\n{request}".encode())
        assert parse(read_all(visit)).status == 400


def test_list_that_is_not_confirmed_is_not_used(make_listing: Callable[..., tuple[Standby, str]]) -> None:
    standby, host = make_listing()
    allow(standby, 1)
    eventually(lambda: standby.visitor.get(host).status == 503)
    allow(standby)
    assert standby.visitor.get(host).status == 200
    standby.run(standby.forwarder.allow_list(0))
    assert standby.visitor.get(host).status == 503


def test_clock_that_is_set_back_makes_no_list_last_longer(
    make_listing: Callable[..., tuple[Standby, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy forgets by its own clock up to when the list may be used."""
    monkeypatch.setattr(listed_config, "PROXY_SECONDS", 1.0)
    standby, host = make_listing()
    allow(standby, 86_400)
    assert standby.visitor.get(host).status == 200
    eventually(lambda: standby.visitor.get(host).status == 503)


@pytest.mark.parametrize("was_killed", [False, True], ids=["in order", "killed"])
def test_proxy_that_finishes_what_is_open_leads_to_no_app_any_more(
    make_listing: Callable[..., tuple[Standby, str]], *, was_killed: bool
) -> None:
    """The next service may give addresses to others at once, where no other one stands by."""
    standby, host = make_listing()
    with dial(standby.options.proxy.port) as slow, dial(standby.options.proxy.port) as late:
        slow.sendall(f"GET /slow?1 HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        # The first bytes: the connection has its way already.
        late.sendall(b"GET /head HT")
        time.sleep(0.3)
        # The next process of a service that was killed knows nothing of its proxy but the folder.
        retiring = Forwarder(standby.forwarder._files.directory) if was_killed else standby.forwarder
        standby.run(retiring.retire())
        with pytest.raises(ConnectionRefusedError):
            standby.visitor.dial()
        late.sendall(f"TP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        assert parse(read_all(late)).status == 503
        assert parse(read_all(slow)).status == 200


def open_websocket(standby: Standby, host: str) -> socket.socket:
    visit = dial(standby.options.proxy.port)
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    lines = (f"GET /websocket HTTP/1.1\r\nHost: {host}", "Connection: Upgrade", "Upgrade: websocket")
    visit.sendall("\r\n".join((*lines, key, "Sec-WebSocket-Version: 13", "", "")).encode())
    head = b""
    while not head.endswith(b"\r\n\r\n") and (piece := visit.recv(1)):
        head += piece
    assert head.startswith(b"HTTP/1.1 101 ")
    return visit


@pytest.mark.parametrize("retires", [False, True])
def test_visits_of_the_list_end_with_their_way_and_no_others(
    make_listing: Callable[..., tuple[Standby, str]], make_proxy: Callable[..., Proxy], app: App, *, retires: bool
) -> None:
    standby, host = make_listing()
    worker = receiving(make_proxy())
    worker.open(app, host=host)
    with open_websocket(standby, host) as by_list:
        lead(standby, port_of(worker), listed=False)
        with open_websocket(standby, host) as by_worker:
            work = standby.forwarder.retire(ends_visits=True) if retires else standby.forwarder.end_visits()
            standby.run(work)
            by_list.settimeout(PATIENCE)
            assert by_list.recv(1) == b""
            by_worker.settimeout(0.5)
            with pytest.raises(TimeoutError):
                by_worker.recv(1)


def test_app_that_left_the_list_is_not_served(listing: tuple[Standby, str], app: App) -> None:
    """An app leaves it when it is made private or deleted."""
    standby, host = listing
    other = new_host()
    put(standby, app, other)
    assert (standby.visitor.get(host).status, standby.visitor.get(other).status) == (503, 200)


def test_address_without_an_app_is_dialled_once(listing: tuple[Standby, str], make_app: Callable[[str], App]) -> None:
    standby, host = listing[0], new_host()
    gone = make_app("gone")
    put(standby, gone, host)
    gone.process.kill()
    gone.process.wait()
    began = time.monotonic()
    answer = standby.visitor.get(host)
    assert answer.status == 502
    assert time.monotonic() - began < 0.9, "HAProxy tries again after a second"
    # One that accepts, and breaks off without an answer.
    with socket.create_server(("127.0.0.1", gone.port)) as other:
        taken = []

        def drop() -> None:
            while True:
                try:
                    accepted = other.accept()[0]
                except OSError:
                    return
                accepted.recv(1)
                taken.append(accepted)
                accepted.close()

        threading.Thread(target=drop, daemon=True).start()
        assert standby.visitor.get(host).status == 502
        assert len(taken) == 1
        other.shutdown(socket.SHUT_RDWR)


def test_limits_by_address_hold(make_listing: Callable[..., tuple[Standby, str]]) -> None:
    standby, host = make_listing(address_connections=2)
    with dial(standby.options.proxy.port) as first, dial(standby.options.proxy.port) as second:
        for one in (first, second):
            one.sendall(f"GET /slow?3 HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        time.sleep(0.3)
        with pytest.raises((OSError, AssertionError)), dial(standby.options.proxy.port) as third:
            ask(third, host)
        with dial(standby.options.proxy.port, "127.0.0.78") as other:
            assert ask(other, host).status == 200


def test_trusted_proxy_names_visitors_who_have_the_limit(make_listing: Callable[..., tuple[Standby, str]]) -> None:
    standby, host = make_listing(address_connections=2, trusted_proxies=(ip_network(f"{CLIENT}/32"),))
    port, named = standby.options.proxy.port, ("X-Forwarded-For: 198.51.100.1", "X-Forwarded-Proto: https")
    for source, seen in ((CLIENT, ("198.51.100.1", "https")), ("127.0.0.78", ("127.0.0.78", "http"))):
        with dial(port, source) as visit:
            headers = ask(visit, host, "/head", *named).seen
        assert (headers["x-forwarded-for"], headers["x-forwarded-proto"]) == ([seen[0]], [seen[1]])
    with dial(port) as first, dial(port) as second, dial(port) as third, dial(port) as fourth:
        for one in (first, second):
            one.sendall(f"GET /slow?3 HTTP/1.1\r\nHost: {host}\r\n{named[0]}\r\n\r\n".encode())
        time.sleep(0.3)
        assert ask(third, host, "/head", *named).status == 429
        assert ask(fourth, host, "/head", "X-Forwarded-For: 198.51.100.2").status == 200


def test_websocket_of_a_public_app_opens(listing: tuple[Standby, str]) -> None:
    open_websocket(*listing).close()


def test_proxy_that_died_has_its_list_again(listing: tuple[Standby, str], app: App) -> None:
    standby, host = listing
    for pid in list(standby.forwarder._processes()):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not list(standby.forwarder._processes()))
    standby.run(standby.forwarder.run(standby.options))
    assert standby.visitor.get(host).status == 503
    put(standby, app, host)
    allow(standby)
    assert standby.visitor.get(host).status == 200


def test_list_of_10000_routes_is_put_and_changed(listing: tuple[Standby, str], app: App) -> None:
    standby, host = listing
    value = encode(route_to(app, host=host))
    many = {f"n{number}.localhost": value for number in range(10_000)}
    began = time.process_time()
    standby.run(standby.forwarder.put_list(many))
    first = time.process_time() - began
    began = time.process_time()
    standby.run(standby.forwarder.put_list({**many, host: value}))
    change = time.process_time() - began
    print(f"10,000 routes put: {first:.2f} s of CPU, one of them changed: {change * 1000:.1f} ms")  # noqa: T201
    assert standby.visitor.get(host).status == standby.visitor.get("n9999.localhost").status == 200
    assert change < first / 5
