"""The counters that say whether anybody is there."""

from __future__ import annotations

import threading
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable

import pytest
from tests.previews.proxy import TOKEN, App, Proxy, eventually
from tests.previews.visitor import PATIENCE, Visitor, ask

from builderd.metrics.model import response_counts
from builderd.previews.haproxy import config, counters, pause, runtime_api
from builderd.previews.model import STATUS_CLASSES, Route, RouteState

pytestmark = pytest.mark.haproxy


def test_requests_and_bytes_are_counted_by_host(proxy: Proxy, app: App) -> None:
    one, other = proxy.open(app), proxy.open(app)
    for _ in range(3):
        proxy.visitor.get(one, "/upload", "Content-Length: 0", method="POST")
    proxy.visitor.get(other)
    counted = proxy.activity()
    assert (counted[one].requests, counted[other].requests) == (3, 1)
    assert counted[one].bytes_in > 100
    assert counted[one].bytes_out > 100
    assert counted[one].open_connections == 0
    assert counted[one].idle_seconds < 60


def test_the_spelling_of_the_host_does_not_matter(proxy: Proxy, app: App) -> None:
    host = proxy.open(app)
    for spelling in (host, host.upper(), f"{host}.", f"{host}:1234"):
        assert proxy.visitor.get(spelling).status == 200
    assert proxy.activity()[host].requests == 4


def test_an_open_stream_is_activity(proxy: Proxy, app: App) -> None:
    host = proxy.open(app)
    with proxy.visitor.dial() as stream:
        stream.sendall(f"GET /events HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        eventually(lambda: host in proxy.activity() and proxy.activity()[host].open_connections == 1)
        assert proxy.activity()[host].idle_seconds == 0
    eventually(lambda: proxy.activity()[host].open_connections == 0)


def test_the_counters_of_a_removed_host_leave_the_proxy(proxy: Proxy, app: App) -> None:
    host, other = proxy.open(app), proxy.open(app)

    def is_counted() -> bool:
        proxy.activity()
        return host in proxy.run(runtime_api.ask(proxy.directory / "admin.sock", counters.SHOW))

    with proxy.visitor.dial() as stream:
        stream.sendall(f"GET /events HTTP/1.1\r\nHost: {host}\r\nAccept: text/event-stream\r\n\r\n".encode())
        proxy.visitor.get(host)
        proxy.visitor.get(other)
        eventually(lambda: proxy.activity()[host].open_connections == 1)
        proxy.run(proxy.previews.remove(host))
        assert is_counted(), "its stream is still open"
    eventually(lambda: not is_counted())
    assert proxy.activity()[other].requests == 1


def test_no_request_reaches_an_app_whose_requests_were_counted_as_none_behind_a_pause(
    make_proxy: Callable[..., Proxy], app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread may lose its processor between a request's route and its count on a loaded machine.

    Here it computes for a while instead.
    """
    dally = "function(text) local begun = os.clock() while os.clock() - begun < 0.2 do end return text end"
    script, template = pause.script(), config.template()
    looked_up, rule = "http-request track-sc0", "http-request set-var(txn.x) str(x),lua.dally if { path /dally }"
    monkeypatch.setattr(pause, "script", lambda: f'{script}\ncore.register_converters("dally", {dally})')
    monkeypatch.setattr(config, "template", lambda: template.replace(looked_up, f"{rule}\n{looked_up}"))
    proxy = make_proxy(threads=4).start()
    host = proxy.open(app)

    def asked() -> int:
        with Visitor(app.port).dial() as direct:
            return int(ask(direct, host, "/head?/dally").json["asked"])

    for _ in range(8):
        visit = threading.Thread(target=proxy.visitor.get, args=(host, "/dally"))
        visit.start()
        time.sleep(0.05)  # it is in the midst of its turn, on an idle machine
        proxy.put(Route(host, RouteState.PAUSED, None))
        eventually(lambda: proxy.run(proxy.previews.open_requests(host)) == 0)
        before = asked()
        # One that came too late for that route is paused: it may go on.
        visit.join(1)
        assert asked() == before
        proxy.open(app, host=host)
        visit.join(PATIENCE)


def test_failures_are_counted(proxy: Proxy, app: App) -> None:
    host = proxy.open(app)
    proxy.visitor.get(host, "/drop")
    proxy.visitor.get(host)
    assert proxy.activity()[host].failures == 1


def test_refused_requests_are_no_visits(proxy: Proxy, app: App) -> None:
    """A stranger must not keep a private app awake, nor make up hosts until the table is full."""
    private = proxy.open(app, private=True)
    stopped = proxy.closed(RouteState.STOPPED)
    proxy.visitor.get(private, "/head", "X-Service-Token: wrong")
    proxy.visitor.get(stopped)
    proxy.visitor.get("made-up.localhost")
    assert not {private, stopped, "made-up.localhost"} & proxy.activity().keys()
    proxy.visitor.get(private, "/head", f"X-Service-Token: {TOKEN}")
    assert proxy.activity()[private].requests == 1


def test_answers_are_counted_by_status_class(proxy: Proxy, app: App) -> None:
    host = proxy.open(app)
    answers = (b"HTTP/1.1 %d Some\r\nContent-Length: 0\r\n\r\n" % status for status in (302, 404, 503))
    for path in ("/", "/", *(f"/raw?{urlsafe_b64encode(answer).decode()}" for answer in answers), "/drop"):
        proxy.visitor.get(host, path)
    counted = proxy.activity()[host]
    classes = (counted.answers_2xx, counted.answers_3xx, counted.answers_4xx, counted.answers_5xx)
    assert classes == (2, 1, 1, 2)
    assert counted.requests == 6


def test_times_are_counted_by_class_of_status(proxy: Proxy, app: App) -> None:
    host = proxy.open(app)
    answers = (b"HTTP/1.1 %d Some\r\nContent-Length: 0\r\n\r\n" % status for status in (302, 404, 404, 503))
    for path in ("/", *(f"/raw?{urlsafe_b64encode(answer).decode()}" for answer in answers), "/drop"):
        proxy.visitor.get(host, path)
    counted = proxy.activity()[host]
    assert [sum(response_counts(counted, cls)) for cls in STATUS_CLASSES] == [1, 1, 2, 1]
    assert sum(response_counts(counted)) == 5
