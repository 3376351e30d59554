"""Answers to visitors when no app can answer."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable

import pytest
from tests.previews.next_owner import NextOwner
from tests.previews.proxy import BUILDER, TOKEN, App, Proxy, free_port, new_host
from tests.previews.visitor import Answer, parse, read_all

from builderd.core.ids import secret_hash
from builderd.previews.model import Address, Route, RouteState

pytestmark = pytest.mark.haproxy

SAYS = {
    RouteState.STARTING: ("starting", "being started"),
    RouteState.STOPPED: ("stopped", "was stopped"),
    RouteState.FAILED: ("failed", "could not be started"),
    RouteState.JOB: ("one_time_job", "one-time job"),
    RouteState.WORKER: ("worker", "This is a worker"),
}
BROKEN_OFF, REFUSED = "what it sent is not HTTP/1.1", "Nothing listens on the app"
OWNER = f"X-Service-Token: {TOKEN}"
LOGS = f"/api/v1/builders/{BUILDER}/logs"


@pytest.mark.parametrize("state", SAYS)
def test_a_browser_reads_a_page(proxy: Proxy, state: RouteState) -> None:
    host = proxy.closed(state)
    answer = proxy.visitor.browse(host)
    assert answer.status == 503
    assert SAYS[state][1] in answer.text
    assert host in answer.text
    assert_page(answer)


@pytest.mark.parametrize(
    "accept", ["application/json", "application/json, text/html", "*/*", "application/json, text/plain, */*"]
)
@pytest.mark.parametrize("state", SAYS)
def test_a_client_reads_the_failure_envelope(proxy: Proxy, state: RouteState, accept: str) -> None:
    host = proxy.closed(state)
    answer = proxy.visitor.get(host, "/", f"Accept: {accept}")
    assert answer.status == 503
    assert answer.header("content-type") == "application/json"
    assert answer.json["success"] is False
    assert answer.json["code"] == SAYS[state][0]
    assert SAYS[state][1] in answer.json["message"]
    assert answer.json["data"] == {"host": host}


def test_starting_says_when_to_come_back_and_a_browser_does_by_itself(proxy: Proxy) -> None:
    host = proxy.closed(RouteState.STARTING)
    page = proxy.visitor.browse(host)
    assert page.header("retry-after") == "2"
    assert '<meta http-equiv="refresh" content="2">' in page.text
    assert proxy.visitor.get(host).header("retry-after") == "2"


@pytest.mark.parametrize("state", [RouteState.STOPPED, RouteState.FAILED, RouteState.JOB])
def test_permanent_errors_have_no_retry_after(proxy: Proxy, state: RouteState) -> None:
    page = proxy.visitor.browse(proxy.closed(state))
    assert page.header("retry-after") is None
    assert "refresh" not in page.text


def test_an_unknown_host_is_a_404_that_does_not_repeat_it(proxy: Proxy) -> None:
    page = proxy.visitor.browse("nobody-knows-me.localhost")
    assert page.status == 404
    assert "There is no preview at this address" in page.text
    assert "nobody-knows-me" not in page.text
    assert_page(page)
    assert proxy.visitor.get("nobody-knows-me.localhost").json["code"] == "not_found"


def test_a_stranger_reads_how_to_enter_a_private_preview(proxy: Proxy, app: App) -> None:
    page = proxy.visitor.browse(proxy.open(app, private=True))
    assert page.status == 401
    assert "X-Service-Token" in page.text
    assert "?service_token=" in page.text
    assert_page(page)


# A crash


def test_aborted_response_differs_from_a_crash(proxy: Proxy, app: App) -> None:
    assert_no_answer(proxy, proxy.open(app), "/drop", BROKEN_OFF)


def test_an_app_that_does_not_listen_refused_the_connection(proxy: Proxy) -> None:
    route = proxy.put(Route(new_host(), RouteState.OPEN, Address("127.0.0.1", free_port())))
    assert_no_answer(proxy, route.host, "/", REFUSED)


@pytest.mark.parametrize(("method", "header"), [("GET", "X-Nothing: here"), ("GET", OWNER), ("POST", OWNER)])
def test_a_refused_request_never_reaches_who_has_the_address_next(proxy: Proxy, method: str, header: str) -> None:
    """A second try would dial the address a second later, when it may be another tenant's."""
    address = Address("127.0.0.1", free_port())
    route = proxy.put(Route(new_host(), RouteState.OPEN, address))
    reached: list[bytes] = []

    def listen_later() -> None:
        time.sleep(0.2)
        with socket.create_server((address.ip, address.port)) as server:
            server.settimeout(2)
            with contextlib.suppress(TimeoutError), server.accept()[0] as connection:
                reached.append(connection.recv(4096))

    stranger = threading.Thread(target=listen_later)
    stranger.start()
    assert proxy.visitor.get(route.host, "/", "Content-Length: 0", header, method=method).status == 502
    stranger.join()
    assert reached == []


@pytest.mark.parametrize("pause", [0.0, 0.2], ids=["at once", "after a pause"])
@pytest.mark.parametrize("header", ["X-Nothing: here", OWNER])
def test_request_without_an_answer_never_reaches_who_has_the_address_next(
    proxy: Proxy, header: str, pause: float
) -> None:
    """The sandbox was killed with its network, and the next owner's kernel resets the connection."""
    with NextOwner() as owner:
        host = proxy.put(Route(new_host(), RouteState.OPEN, owner.address, owner_hash=secret_hash(TOKEN))).host
        with proxy.visitor.dial() as visit:
            time.sleep(pause)
            visit.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n{header}\r\nConnection: close\r\n\r\n".encode())
            assert owner.take_over() == b""
            assert parse(read_all(visit)).status == 502


def test_an_app_that_exits_in_mid_request_closed_the_connection(proxy: Proxy, make_app: Callable[[str], App]) -> None:
    victim = make_app("victim")
    assert BROKEN_OFF in proxy.visitor.browse(proxy.open(victim), "/exit").text
    # Linux closes the files of a dying process last first: the connection goes before the listening socket.
    victim.process.wait()
    assert_no_answer(proxy, proxy.open(victim), "/exit", REFUSED)
    victim.start()
    assert proxy.visitor.get(proxy.open(victim)).status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "GET", "HEAD"])
@pytest.mark.parametrize("header", ["X-Nothing: here", OWNER])
def test_a_crash_is_not_repeated(proxy: Proxy, make_app: Callable[[str], App], method: str, header: str) -> None:
    host = proxy.open(make_app("victim"))
    for _ in range(3):
        before = proxy.visitor.get(host, "/head?/drop").json["asked"]
        assert proxy.visitor.get(host, "/drop", "Content-Length: 0", header, method=method).status == 502
        assert proxy.visitor.get(host, "/head?/drop").json["asked"] - before == 1


def test_an_apps_own_errors_are_its_own(proxy: Proxy, app: App) -> None:
    import base64

    host = proxy.open(app)
    for status in (404, 500, 502, 503, 504):
        raw = base64.urlsafe_b64encode(f"HTTP/1.1 {status} Mine\r\nContent-Length: 4\r\n\r\nmine".encode()).decode()
        answer = proxy.visitor.browse(host, f"/raw?{raw}")
        assert (answer.status, answer.body) == (status, b"mine")


def test_an_app_that_takes_too_long_is_a_504(make_proxy: Callable[..., Proxy], app: App) -> None:
    from builderd.previews.haproxy.options import Timeouts

    proxy = make_proxy(timeouts=Timeouts(server=1)).start()
    answer = proxy.visitor.browse(proxy.open(app), "/slow?30")
    assert answer.status == 504
    assert "did not answer in time" in answer.text


# The owner


@pytest.mark.parametrize("private", [True, False])
def test_crash_page_links_the_logs_for_the_owner(proxy: Proxy, app: App, private: bool) -> None:
    host = proxy.open(app, private=private)
    assert LOGS in proxy.visitor.browse(host, "/drop", OWNER).text
    assert LOGS in proxy.visitor.get(host, "/drop", OWNER).json["message"]


@pytest.mark.parametrize("header", ["X-Nothing: here", "X-Service-Token: wrong"])
def test_pages_have_no_owner_links_for_others(proxy: Proxy, app: App, header: str) -> None:
    for host in (proxy.open(app), proxy.closed(RouteState.FAILED)):
        answer = proxy.visitor.browse(host, "/drop", header)
        assert str(BUILDER) not in answer.text
        assert "It is yours" not in answer.text


def test_the_page_names_the_address_of_the_api(make_proxy: Callable[..., Proxy]) -> None:
    proxy = make_proxy(api_url="http://127.0.0.1:8080").start()
    answer = proxy.visitor.browse(proxy.closed(RouteState.FAILED), "/", OWNER)
    assert f"http://127.0.0.1:8080{LOGS}" in answer.text


def assert_no_answer(proxy: Proxy, host: str, path: str, says: str) -> None:
    page = proxy.visitor.browse(host, path)
    assert page.status == 502
    assert says in page.text
    assert page.header("retry-after") == "5"
    assert_page(page)
    envelope = proxy.visitor.get(host, path)
    assert envelope.status == 502
    assert envelope.json["code"] == "app_crashed"
    assert says in envelope.json["message"]


def assert_page(answer: Answer) -> None:
    assert answer.header("content-type") == "text/html; charset=utf-8"
    assert answer.header("cache-control") == "no-store"
    assert "default-src 'none'" in (answer.header("content-security-policy") or "")
    assert answer.text.startswith("<!doctype html>")
    assert answer.text.rstrip().endswith("</html>")
    assert "%[" not in answer.text
    assert "%%" not in answer.text
