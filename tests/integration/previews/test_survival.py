"""Visitors notice nothing: not when the service is killed, not when the proxy reloads."""

from __future__ import annotations

import asyncio
import fcntl
import http.client
import os
import signal
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

from builderd.adapters.previews.haproxy import guard
from builderd.domain.errors import EngineUnavailable

pytestmark = pytest.mark.haproxy

SERVICE = """
import asyncio, sys
from pathlib import Path
from builderd.adapters.previews.haproxy.options import ProxyOptions
from builderd.adapters.previews.haproxy.previews import HaproxyPreviews
from builderd.domain.previews import Address, Route, RouteState

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


def test_a_reload_by_hand_fails_no_request(make_proxy: Callable[..., Proxy], app: App) -> None:
    from tests.integration.previews.test_life import master_of

    proxy = make_proxy().start()
    host = proxy.open(app)
    with load(proxy, host) as counted:
        for _ in range(3):
            more(counted, 200)
            os.kill(master_of(proxy), signal.SIGUSR2)
        more(counted, 400)
    assert counted.keys() == {200}, counted


def test_a_proxy_that_dies_comes_back_while_no_service_runs(make_proxy: Callable[..., Proxy], app: App) -> None:
    from tests.integration.previews.test_life import master_of

    proxy = make_proxy().start()
    host = proxy.open(app)
    for _ in range(2):
        before = master_of(proxy)
        os.kill(before, signal.SIGKILL)
        wait_for_another(proxy, before)
        eventually(lambda: proxy.visitor.is_served(host))
    proxy.previews = proxy.service()
    proxy.start()
    assert proxy.visitor.get(host).status == 200
    # The guard's end is not that of the proxy which it has started.
    proxy.run(guard.end(proxy.previews._files))
    assert proxy.visitor.get(host).status == 200
    proxy.run(proxy.previews.down())
    assert processes_of(proxy) == []


@pytest.mark.parametrize("killed", ["guard", "waiting", "everything"])
def test_a_service_that_runs_brings_back_whatever_was_killed(
    make_proxy: Callable[..., Proxy], app: App, killed: str
) -> None:
    proxy = make_proxy().start()
    host = proxy.open(app)
    master, watchdog = (int((proxy.directory / name).read_text()) for name in ("haproxy.pid", "guard.pid"))
    eventually(lambda: bool(children(watchdog)))
    victims = {"guard": [watchdog], "waiting": children(watchdog), "everything": [watchdog, *children(master), master]}[
        killed
    ]

    async def supervise() -> None:
        keeping = asyncio.create_task(proxy.previews.supervise())
        await asyncio.sleep(0.05)
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(30):
            while not (await proxy.previews.ready() and guard.find_process(proxy.previews._files.guard_pid, files)):
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)

    files = proxy.previews._files
    proxy.run(supervise())
    assert proxy.visitor.is_served(host)
    assert (guard.find_process(files.pid, files) == master) == (killed != "everything")
    eventually(lambda: bool(children(int(_text(files.guard_pid) or 0))))
    proxy.run(proxy.previews.down())
    assert processes_of(proxy) == []


def test_start_brings_back_guard_and_proxy_killed_together(make_proxy: Callable[..., Proxy], app: App) -> None:
    """A guard without a service is not watched: both stay down until the next start, which finds their files."""
    proxy = make_proxy().start()
    host = proxy.open(app)
    files = proxy.previews._files
    master, watchdog = int(files.pid.read_text()), int(files.guard_pid.read_text())
    for pid in (watchdog, master, *children(master)):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: guard.find_process(files.pid, files) is None)
    proxy.previews = proxy.service()
    proxy.start()
    assert proxy.visitor.is_served(host)
    assert guard.find_process(files.guard_pid, files) not in (None, watchdog)
    proxy.run(proxy.previews.down())
    assert processes_of(proxy) == []


def children(pid: int) -> list[int]:
    """Return the children of a process, none if there is no such process (any more)."""
    return [int(child) for child in _text(Path(f"/proc/{pid}/task/{pid}/children")).split()]


def test_the_guard_and_a_service_take_turns_at_a_proxy_that_died(make_proxy: Callable[..., Proxy], app: App) -> None:
    """Together they would take each other's port, and leave sockets behind on which nobody answers."""
    from tests.integration.previews.test_life import kill

    proxy = make_proxy().start()
    host = proxy.open(app)
    for _ in range(3):
        with (proxy.directory / "turn.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            kill(proxy)
            eventually(lambda: any(words.startswith("flock") for words in processes_of(proxy)))
            starting = threading.Thread(target=proxy.start)
            starting.start()
            assert not proxy.visitor.is_served(host), "nobody may have started one yet"
        starting.join(60)
        assert proxy.visitor.get(host).status == 200
        assert proxy.activity().keys() == {host}
    proxy.run(proxy.previews.down())
    assert processes_of(proxy) == []


def test_hanging_guard_start_is_reported(make_proxy: Callable[..., Proxy], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "START_LOCK_TIMEOUT", 0.1)
    proxy = make_proxy()
    proxy.directory.mkdir(parents=True, exist_ok=True)
    with (proxy.directory / "turn.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(EngineUnavailable, match="is being started"):
            proxy.start()
    assert proxy.start().run(proxy.previews.ready())


def wait_for_another(proxy: Proxy, master: int) -> None:
    """Wait for a new master's file: HAProxy removes the old one before it writes its own."""
    file = proxy.directory / "haproxy.pid"
    eventually(lambda: _text(file) not in ("", str(master)))


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def processes_of(proxy: Proxy) -> list[str]:
    """Return the processes that the configuration, or the guard's file, names."""
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
