"""Visitors notice nothing: not when the service is killed, not when the proxy reloads."""

from __future__ import annotations

import http.client
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tests.integration.previews.test_streams import dial
from tests.previews.proxy import App, Proxy, eventually
from tests.previews.visitor import PATIENCE

pytestmark = pytest.mark.haproxy

SERVICE = """
import asyncio, sys
from pathlib import Path
from builderd.previews.haproxy.options import ProxyOptions
from builderd.previews.haproxy.previews import HaproxyPreviews
from builderd.previews.model import Address, Route, RouteState

async def main(directory, port, app, host):
    previews = HaproxyPreviews(Path(directory), ProxyOptions(port=int(port), threads=2))
    await previews.start()
    number = 0
    while True:
        await previews.put(Route(host, RouteState.OPEN, Address("127.0.0.1", int(app))))
        await previews.put(Route(f"n{number % 50}.localhost", RouteState.OPEN, Address("127.0.0.1", int(app))))
        number += 1
        if number == 10:
            print("busy", flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


def test_a_killed_service_fails_no_request(make_proxy: Callable[..., Proxy], app: App) -> None:
    proxy = make_proxy()
    host = "steady.localhost"
    service = start_service(proxy, app, host)
    with load(proxy, host) as counted:
        for _ in range(5):
            more(counted, 200)
            service.kill()
            service.wait()
            more(counted, 200)
            service = start_service(proxy, app, host)
        service.kill()
        service.wait()
        more(counted, 200)
    assert counted.keys() == {200}, counted


def test_websocket_outlives_kills_of_the_service(make_proxy: Callable[..., Proxy], app: App) -> None:
    proxy, host = make_proxy(), "steady.localhost"
    service = start_service(proxy, app, host)
    with dial(proxy, host) as connection:
        for turn in range(3):
            connection.send(f"up {turn}")
            assert connection.recv(timeout=PATIENCE) == f"up {turn}"
            service.kill()
            service.wait()
            connection.send(f"down {turn}")
            assert connection.recv(timeout=PATIENCE) == f"down {turn}"
            service = start_service(proxy, app, host)
    service.kill()
    service.wait()


def test_a_reload_fails_no_request(make_proxy: Callable[..., Proxy], app: App) -> None:
    proxy = make_proxy().start()
    host = proxy.open(app)
    with load(proxy, host) as counted:
        for threads in (1, 2, 1, 2):
            more(counted, 200)
            proxy.previews = proxy.service(threads=threads)
            proxy.start()
        more(counted, 200)
    assert counted.keys() == {200}, counted


def processes_of(proxy: Proxy) -> list[str]:
    """Return the processes that have the proxy's directory in their command."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if str(proxy.directory) in command:
                found.append(command)
    return found


def start_service(proxy: Proxy, app: App, host: str) -> subprocess.Popen[str]:
    argv = (sys.executable, "-c", SERVICE, str(proxy.directory), str(proxy.options.port), str(app.port), host)
    source = str(Path(__file__).parents[3] / "src")
    service = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": source})
    assert service.stdout is not None
    assert service.stdout.readline() == "busy\n"
    return service


@contextmanager
def load(proxy: Proxy, host: str) -> Iterator[Counter[object]]:
    """Visitors of two kinds, until the end: some keep their connection, some take a new one each time."""
    counted: Counter[object] = Counter()
    ended = threading.Event()
    eventually(lambda: proxy.visitor.is_served(host))
    threads = [
        threading.Thread(target=_visit, args=(proxy, host, counted, ended, keeps))
        for keeps in (True, True, True, False, False)
    ]
    for thread in threads:
        thread.start()
    try:
        yield counted
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def _visit(proxy: Proxy, host: str, counted: Counter[object], ended: threading.Event, keeps: bool) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.options.port, timeout=20)
    while not ended.is_set():
        try:
            connection.request("GET", "/head", headers={"Host": host})
            answer = connection.getresponse()
            answer.read()
            counted[answer.status] += 1
        except Exception as error:
            counted[repr(error)] += 1
            connection.close()
        if not keeps:
            connection.close()


def more(counted: Counter[object], requests: int) -> None:
    """Wait until so many more were answered."""
    goal = counted.total() + requests
    while counted.total() < goal:
        time.sleep(0.005)
