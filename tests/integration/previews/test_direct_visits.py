"""A standby's real proxy leads plain visits to their apps beside the service that works, and passes all others on.

The app of the standby's list and that of the service's route differ, so that each answer says which way it went.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import ip_network

import pytest
from tests.previews.next_owner import NextOwner
from tests.previews.proxy import TOKEN, App, Proxy, eventually, free_port, new_host, route_to
from tests.previews.standby import CLIENT, Standby, dial, port_of, receiving
from tests.previews.visitor import PATIENCE, Answer, ask, parse, read_all, read_until

from builderd.adapters.previews.haproxy import listed_config, runtime_api
from builderd.adapters.previews.haproxy.forwarder import Forwarder
from builderd.adapters.previews.haproxy.route_map import encode
from builderd.adapters.previews.haproxy.visit_counts import VisitCounts
from builderd.domain.errors import EngineUnavailable
from builderd.domain.previews import PreviewActivity, Route, RouteState

pytestmark = pytest.mark.haproxy


@dataclass
class Pair:
    """A standby whose list has one host, and the service that works; by the way, its answers name another app."""

    standby: Standby
    worker: Proxy
    host: str

    def allow(self, seconds: float = 60) -> None:
        self.standby.run(self.standby.forwarder.allow_direct(int(time.time() + seconds)))

    def name(self, connection: socket.socket | None = None, method: str = "GET", *headers: str) -> str:
        """Return the app that answers: "app" is the list's, "neighbour" that of the service's route."""
        if connection is None:
            answer = self.standby.visitor.get(self.host, "/head", *headers, method=method)
        else:
            answer = ask(connection, self.host, "/head", *headers, method=method)
        return str(answer.json["name"])


@pytest.fixture
def make_pair(
    make_standby: Callable[..., Standby], make_proxy: Callable[..., Proxy], app: App, neighbour: App
) -> Callable[..., Pair]:
    def make(**options: object) -> Pair:
        standby, worker = make_standby(**options), receiving(make_proxy(**options))
        standby.lead(port_of(worker))
        pair = Pair(standby, worker, worker.open(neighbour))
        standby.run(standby.forwarder.put_list({pair.host: encode(route_to(app, host=pair.host))}))
        pair.allow()
        return pair

    return make


@pytest.fixture
def pair(make_pair: Callable[..., Pair]) -> Pair:
    return make_pair()


def test_plain_visits_are_led_directly_and_all_others_passed_on(pair: Pair, neighbour: App) -> None:
    assert pair.name() == pair.name(None, "GET", "Accept: text/html") == "app"
    with dial(pair.standby.options.proxy.port) as kept:
        # Each request has its own way, whichever began the connection.
        for _ in range(2):
            assert pair.name(kept) == "app"
            assert pair.name(kept, "POST", "Content-Length: 0") == "neighbour"
            assert pair.name(kept, "GET", f"X-Service-Token: {TOKEN}") == "neighbour"
            assert pair.name(kept, "GET", "Cookie: builderd_service_token=x") == "neighbour"
            assert pair.name(kept, "GET", "Accept: text/event-stream") == "neighbour"
        private = pair.worker.open(neighbour, private=True)
        assert ask(kept, private).status == 401
        assert ask(kept, private, "/head", f"X-Service-Token: {TOKEN}").json["name"] == "neighbour"
        assert ask(kept, new_host()).status == 404
    with dial(pair.standby.options.proxy.port) as kept:
        assert pair.name(kept, "PUT", "Content-Length: 0") == "neighbour"
        assert pair.name(kept) == "app"
    assert pair.standby.visitor.get(private).status == 401


def test_both_ways_tell_the_app_the_same_of_its_visitor(pair: Pair) -> None:
    forged = ("X-Forwarded-For: 203.0.113.1", "X-Real-IP: 203.0.113.1", "X_Forwarded_For: 1.1.1.1", "Proxy: x")
    headers = (*forged, "Content-Length: 0")
    with dial(pair.standby.options.proxy.port) as kept:
        seen = [ask(kept, pair.host, "/head", *headers, method=method).seen for method in ("GET", "DELETE")]
    assert seen[0] == seen[1]
    assert seen[0]["x-forwarded-for"] == [CLIENT]


def test_trusted_proxy_names_visitors_of_both_ways(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(trusted_proxies=(ip_network(f"{CLIENT}/32"),), address_connections=50)
    named = ("X-Forwarded-For: 198.51.100.1", "X-Forwarded-Proto: https", "Content-Length: 0")
    for source, expected in ((CLIENT, ("198.51.100.1", "https")), ("127.0.0.78", ("127.0.0.78", "http"))):
        with dial(pair.standby.options.proxy.port, source) as kept:
            for method, name in (("GET", "app"), ("POST", "neighbour"), ("GET", "app")):
                answer = ask(kept, pair.host, "/head", *named, method=method)
                assert answer.json["name"] == name
                seen = answer.seen
                assert (*seen["x-forwarded-for"], *seen["x-forwarded-proto"]) == expected


def test_use_of_the_list_ends_by_itself(make_pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    """A standby that was killed, or stopped, tells its proxy nothing."""
    monkeypatch.setattr(listed_config, "DIRECT_PROXY_SECONDS", 1.0)
    pair = make_pair()
    pair.allow(86_400)
    with dial(pair.standby.options.proxy.port) as kept:
        assert pair.name(kept) == "app"
        eventually(lambda: pair.name() == "neighbour")
        assert pair.name(kept) == "neighbour"
    pair.allow(-1)
    assert pair.name() == "neighbour", "late, although it was told just now"


def test_route_that_left_the_list_is_not_led_by_it_any_more(pair: Pair) -> None:
    with dial(pair.standby.options.proxy.port) as kept:
        assert pair.name(kept) == "app"
        pair.standby.run(pair.standby.forwarder.put_list({}))
        assert pair.name(kept) == pair.name() == "neighbour"


def test_connection_that_was_let_in_before_leads_nowhere_by_a_closed_route(pair: Pair) -> None:
    """The first bytes are here, and the rest comes once the route is closed."""
    with dial(pair.standby.options.proxy.port) as late:
        late.sendall(f"GET /head HTTP/1.1\r\nHost: {pair.host}\r\n".encode())
        time.sleep(0.3)
        pair.standby.run(pair.standby.forwarder.put_list({}))
        late.sendall(b"Connection: close\r\n\r\n")
        assert parse(read_all(late)).json["name"] == "neighbour"


@pytest.mark.parametrize("pause", [0.0, 0.2], ids=["at once", "after a pause"])
def test_visit_without_an_answer_never_reaches_who_has_the_address_next(pair: Pair, pause: float) -> None:
    """The kernel may send its packets again for longer than its address is reserved."""
    with NextOwner() as owner, dial(pair.standby.options.proxy.port) as visit:
        assert pair.name(visit) == "app"
        route = Route(pair.host, RouteState.OPEN, owner.address)
        pair.standby.run(pair.standby.forwarder.put_list({pair.host: encode(route)}))
        time.sleep(pause)
        visit.sendall(f"GET / HTTP/1.1\r\nHost: {pair.host}\r\nConnection: close\r\n\r\n".encode())
        assert owner.take_over() == b""
        assert parse(read_all(visit)).status == 502


def test_closed_idle_connections_fail_no_visit(pair: Pair) -> None:
    with dial(pair.standby.options.proxy.port) as kept:
        for _ in range(10):
            assert ask(kept, pair.host, "/once").json["name"] == "app"
            time.sleep(0.06)


@pytest.mark.parametrize("was_killed", [False, True], ids=["in order", "killed"])
def test_proxy_that_finishes_what_is_open_leads_nothing_directly(pair: Pair, *, was_killed: bool) -> None:
    forwarder = pair.standby.forwarder
    with dial(pair.standby.options.proxy.port) as kept:
        assert pair.name(kept) == "app"
        pair.standby.run((Forwarder(forwarder._files.directory) if was_killed else forwarder).retire())
        kept.sendall(f"GET /head HTTP/1.1\r\nHost: {pair.host}\r\nConnection: close\r\n\r\n".encode())
        assert parse(read_all(kept)).json["name"] == "neighbour"


def test_other_protocols_pass_byte_by_byte(pair: Pair) -> None:
    """The preface of HTTP/2 that a client begins with, and what is no HTTP: the service that works answers both."""
    with dial(pair.standby.options.proxy.port) as visit:
        visit.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
        assert visit.recv(9)[3] == 4, "its settings"
    with dial(pair.standby.options.proxy.port) as visit:
        visit.sendall(b"\x16\x03\x01 no HTTP\r\n\r\n")
        assert parse(read_all(visit)).status == 400


@pytest.mark.parametrize(
    "attempt",
    [
        "GET http://{other}/head HTTP/1.1\r\nHost: {host}",
        "GET /head HTTP/1.1\r\nHost: {host}\r\nHost: {other}",
        "GET /head HTTP/1.1\r\nHost: {other}\r\nX-Forwarded-Host: {host}",
        "GET /head HTTP/1.1\r\nHost: 1--{host}",
        "GET /head HTTP/1.1\r\nHost: {host}:x",
        "GET /.well-known/acme-challenge/x HTTP/1.1\r\nHost: {host}",
        "GET /head?service_token=x HTTP/1.1\r\nHost: {host}",
        "GET /head HTTP/1.1\r\nHost: {host}\r\nContent-Length: 4\r\nTransfer-Encoding: chunked",
        "TRACE /head HTTP/1.1\r\nHost: {host}",
    ],
)
def test_request_that_means_something_else_is_never_led_by_the_list(pair: Pair, attempt: str) -> None:
    """Try it as the first one of a connection, and behind a plain visit."""
    request = f"{attempt.format(host=pair.host, other=new_host())}\r\nConnection: close\r\n\r\n".encode()
    hidden = f"GET /head HTTP/1.1\r\nHost: {pair.host}\r\n\r\n".encode()
    assert b'"app"' not in pair.standby.visitor.exchange(request + hidden)
    with dial(pair.standby.options.proxy.port) as kept:
        assert pair.name(kept) == "app"
        kept.sendall(request + hidden)
        assert b'"app"' not in read_all(kept)


def test_visits_are_counted_as_by_the_service(pair: Pair) -> None:
    counts = VisitCounts(pair.standby.forwarder.counts)

    def read(*asked: str, whole: bool = False) -> tuple[Mapping[str, PreviewActivity], Mapping[str, int]]:
        return pair.standby._runner.run(counts.read(asked, whole=whole))

    assert read(pair.host, whole=True) == ({}, {pair.host: 0})
    for _ in range(3):
        pair.name()
    pair.standby.visitor.get(pair.host, "/raw?SFRUUC8xLjEgNTAwIHgNCkNvbnRlbnQtTGVuZ3RoOiAwDQoNCg==")
    counted = read(whole=True)[0][pair.host]
    assert (counted.requests, counted.answers_2xx, counted.answers_5xx, counted.open_connections) == (4, 3, 1, 0)
    assert sum(counted.class_times) == 1
    answers: list[Answer] = []
    slow = threading.Thread(target=lambda: answers.append(pair.standby.visitor.get(pair.host, "/slow?1")), daemon=True)
    slow.start()
    eventually(lambda: read(pair.host)[1] == {pair.host: 1})
    assert read(pair.host)[0][pair.host].open_connections == 1
    slow.join(PATIENCE)
    eventually(lambda: read(pair.host)[1] == {pair.host: 0})
    assert answers[0].status == 200
    assert pair.worker.activity().get(pair.host) is None, "each visit is counted once"


def test_service_that_is_gone_is_waited_for_and_direct_visits_go_on(pair: Pair) -> None:
    pair.standby.lead(free_port())
    assert pair.name() == "app"
    pair.standby.lead(free_port(), is_open=False)
    assert pair.name() == "app"
    answer = pair.standby.visitor.get(pair.host, method="POST")
    assert (answer.status, answer.header("retry-after")) == (503, "5")
    pair.standby.run(pair.standby.forwarder.allow_direct(0))
    assert pair.standby.visitor.get(pair.host).status == 503


@pytest.mark.parametrize("is_kept", [False, True], ids=["a new connection", "a kept connection"])
def test_websocket_is_passed_on_and_outlives_the_permission(pair: Pair, *, is_kept: bool) -> None:
    with dial(pair.standby.options.proxy.port) as socket_:
        if is_kept:
            assert pair.name(socket_) == "app"
        key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
        lines = (f"GET /websocket HTTP/1.1\r\nHost: {pair.host}", "Connection: Upgrade", "Upgrade: websocket", key)
        socket_.sendall("\r\n".join((*lines, "Sec-WebSocket-Version: 13", "", "")).encode())
        assert read_until(socket_, b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
        assert pair.worker.activity()[pair.host].open_connections == 1
        pair.standby.run(pair.standby.forwarder.allow_direct(0))
        pair.standby.run(pair.standby.forwarder.put_list({}))
        # A masked text frame of one byte, which comes back without the mask (RFC 6455, 5.2).
        socket_.sendall(b"\x81\x81\0\0\0\0x")
        assert socket_.recv(3) == b"\x81\x01x"


def test_all_visitors_of_a_full_proxy_are_served(make_pair: Callable[..., Pair]) -> None:
    """Each has a second connection in the proxy, which must not wait for those of the others, and they for it."""
    pair = make_pair(max_connections=40, address_connections=0)
    begins, names = threading.Event(), list[str]()

    def visit() -> None:
        # Connected at once, or once there is room.
        with dial(pair.standby.options.proxy.port) as one:
            begins.wait()
            one.sendall(f"GET /head HTTP/1.1\r\nHost: {pair.host}\r\nConnection: close\r\n\r\n".encode())
            names.append(parse(read_all(one)).json["name"])

    visits = [threading.Thread(target=visit, daemon=True) for _ in range(40)]
    for one in visits:
        one.start()
    time.sleep(0.5)
    begins.set()
    for one in visits:
        one.join(PATIENCE)
    assert names == ["app"] * 40


def test_address_counts_at_each_proxy_that_leads_its_visits_and_once_for_what_is_passed_on(
    make_standby: Callable[..., Standby], make_proxy: Callable[..., Proxy], app: App, neighbour: App
) -> None:
    worker = receiving(make_proxy(address_connections=1))
    pairs = [Pair(make_standby(address_connections=1), worker, worker.open(neighbour)) for _ in range(2)]
    with ExitStack() as stack:
        kept = []
        for pair in pairs:
            pair.standby.lead(port_of(worker))
            pair.standby.run(pair.standby.forwarder.put_list({pair.host: encode(route_to(app, host=pair.host))}))
            pair.allow()
            kept.append(stack.enter_context(dial(pair.standby.options.proxy.port)))
            assert pair.name(kept[-1]) == "app"
            with pytest.raises((OSError, AssertionError)), dial(pair.standby.options.proxy.port) as second:
                pair.name(second)
        assert pairs[0].name(kept[0], "POST", "Content-Length: 0") == "neighbour"
        assert ask(kept[1], pairs[1].host, "/head", "Content-Length: 0", method="POST").status == 502


def test_list_that_is_put_while_the_proxy_is_started_again_is_put_once_more(
    pair: Pair, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    forwarder, entries = pair.standby.forwarder, {pair.host: encode(route_to(app, host=pair.host))}
    pair.standby.run(forwarder.put_list({}))

    async def start_again(*_: object) -> None:
        await forwarder.retire()
        await forwarder.run(pair.standby.options)

    with monkeypatch.context() as patch:
        patch.setattr(runtime_api, "change_entries", start_again)
        with pytest.raises(EngineUnavailable, match="started again"):
            pair.standby.run(forwarder.put_list(entries))
    pair.standby.run(forwarder.put_list(entries))
    pair.allow()
    assert pair.name() == "app"


@pytest.mark.parametrize("accept", ["text/html", "application/json"])
def test_visitor_whose_way_breaks_off_reads_of_the_visit_and_a_browser_a_page(pair: Pair, accept: str) -> None:
    """Break it off once the request is there: one that ends sooner was never a way, which is a 503."""
    with socket.create_server(("127.0.0.1", 0)) as service:
        pair.standby.lead(service.getsockname()[1])

        def break_off() -> None:
            with service.accept()[0] as way:
                for _ in ("the signature of PROXY", "the request"):
                    read_until(way, b"\r\n\r\n")

        breaking = threading.Thread(target=break_off, daemon=True)
        breaking.start()
        answer = pair.standby.visitor.get(pair.host, "/", "Content-Length: 0", f"Accept: {accept}", method="POST")
        breaking.join(PATIENCE)
    assert (answer.status, "visit" in answer.text, "Idempotency-Key" in answer.text) == (502, True, False)
    assert answer.text.startswith("<!doctype") is (accept == "text/html")


def test_uploads_are_passed_on_whole(pair: Pair) -> None:
    content = bytes(range(256)) * 20_480
    digest = sha256(content).hexdigest()
    parts = [content[at : at + 65_536] for at in range(0, len(content), 65_536)]
    chunked = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    with dial(pair.standby.options.proxy.port) as kept:
        assert pair.name(kept) == "app"
        for body, more in (
            (content, f"Content-Length: {len(content)}"),
            (chunked, "Transfer-Encoding: chunked"),
            (content, f"Content-Length: {len(content)}\r\nExpect: 100-continue"),
        ):
            kept.sendall(f"POST /upload HTTP/1.1\r\nHost: {pair.host}\r\n{more}\r\n\r\n".encode() + body)
            head = read_until(kept, b"\r\n\r\n")
            if head.startswith(b"HTTP/1.1 100 "):
                head = read_until(kept, b"\r\n\r\n")
            length = int(parse(head).header("content-length") or 0)
            told = b""
            while len(told) < length:
                told += kept.recv(length - len(told))
            seen = json.loads(told)
            assert (seen["name"], seen["size"], seen["sha256"]) == ("neighbour", len(content), digest)
        assert pair.name(kept) == "app"
