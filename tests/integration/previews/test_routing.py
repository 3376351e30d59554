"""Requests find their app, and a change of a route is in force when it has been made."""

from __future__ import annotations

import time

import pytest
from tests.previews.proxy import TOKEN, App, Proxy
from tests.previews.visitor import ask

from builderd.previews.model import Route, RouteState

pytestmark = pytest.mark.haproxy


def test_a_changed_route_serves_the_next_request_of_an_open_connection(proxy: Proxy, app: App, neighbour: App) -> None:
    host = proxy.open(app)
    with proxy.visitor.dial() as connection:
        assert ask(connection, host).json["name"] == "app"
        proxy.open(neighbour, host=host)
        assert ask(connection, host).json["name"] == "neighbour"
        proxy.put(Route(host, RouteState.STOPPED))
        connection.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert connection.recv(12) == b"HTTP/1.1 503"


def test_two_apps_on_one_connection_stay_apart(proxy: Proxy, app: App, neighbour: App) -> None:
    """One visitor's connection, many hosts: connections to apps are used again, and never for another app."""
    one, other = proxy.open(app), proxy.open(neighbour)
    with proxy.visitor.dial() as connection:
        for _ in range(20):
            assert ask(connection, one).json["name"] == "app"
            assert ask(connection, other).json["name"] == "neighbour"


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_each_request_uses_a_new_connection(proxy: Proxy, app: App, method: str) -> None:
    """The app may be closing the one before just then."""
    host = proxy.open(app)
    with proxy.visitor.dial() as connection:
        for _ in range(3):
            assert ask(connection, host, "/upload", "Content-Length: 0", method=method).json["used"] == 1


@pytest.mark.parametrize("private", [False, True])
def test_closed_idle_connections_fail_no_request(proxy: Proxy, app: App, private: bool) -> None:
    host = proxy.open(app, private=private)
    with proxy.visitor.dial() as connection:
        for _ in range(10):
            assert ask(connection, host, "/once", f"X-Service-Token: {TOKEN}").status == 200
            time.sleep(0.06)


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"])
def test_every_method_passes(proxy: Proxy, app: App, method: str) -> None:
    answer = proxy.visitor.get(proxy.open(app), "/head?a=%20b&c", "Content-Length: 0", method=method)
    assert answer.status == 200
    if method != "HEAD":
        assert answer.json["first"] == f"{method} /head?a=%20b&c HTTP/1.1"
