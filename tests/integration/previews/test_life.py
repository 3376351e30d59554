"""The proxy survives the service, is adopted, and has all routes after any kill."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Collection
from pathlib import Path

import pytest
from tests.descriptors import held_by
from tests.previews.proxy import App, Proxy, eventually, new_host, route_to
from tests.previews.visitor import ask

from builderd.core.errors import EngineUnavailable
from builderd.previews.haproxy import pause, process, runtime_api
from builderd.previews.haproxy.options import ProxyFiles, Timeouts
from builderd.previews.model import Route, RouteState

pytestmark = pytest.mark.haproxy

Make = Callable[..., Proxy]


def test_the_next_service_adopts_the_proxy_with_its_routes(make_proxy: Make, app: App) -> None:
    proxy = make_proxy().start()
    host = proxy.open(app)
    master, worker = master_of(proxy), worker_of(proxy)
    with proxy.visitor.dial() as connection:
        ask(connection, host)
        proxy.previews = proxy.service()
        proxy.start()
        assert ask(connection, host).status == 200
    assert (master_of(proxy), worker_of(proxy)) == (master, worker)
    assert proxy.run(proxy.previews.routes()).keys() == {host}


def test_proxy_runs_in_its_own_session_and_inherits_no_descriptors(make_proxy: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        os.set_inheritable(listener.fileno(), True)
        proxy = make_proxy().start()
        inode = os.fstat(listener.fileno()).st_ino
        assert os.getsid(master_of(proxy)) != os.getsid(0)
        for pid in (master_of(proxy), worker_of(proxy)):
            open_files = held_by(pid)
            assert open_files
            assert f"socket:[{inode}]" not in open_files


@pytest.mark.root
def test_proxy_worker_is_unprivileged_and_chrooted(make_proxy: Make) -> None:
    proxy = make_proxy().start()
    pid = worker_of(proxy)
    assert Path(f"/proc/{pid}").stat().st_uid != 0
    assert Path(f"/proc/{pid}/root").readlink() == proxy.directory / "empty"


def test_proxy_files_and_sockets_are_private_to_their_owner(make_proxy: Make) -> None:
    proxy = make_proxy().start()
    assert proxy.directory.stat().st_mode & 0o777 == 0o700
    for name in ("admin.sock", "master.sock"):
        assert (proxy.directory / name).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("victim", ["master", "worker"])
def test_the_first_call_that_finds_it_dead_starts_it_again(make_proxy: Make, app: App, victim: str) -> None:
    proxy = make_proxy().start()
    first = proxy.open(app)
    kill(proxy, victim)
    second = proxy.open(app)
    assert [proxy.visitor.get(host).status for host in (first, second)] == [200, 200]
    kill(proxy, victim)
    assert proxy.activity() == {}
    assert [proxy.visitor.get(host).status for host in (first, second)] == [200, 200]


def test_unknown_entry_of_the_map_is_dropped_and_lost_routes_are_put(make_proxy: Make, app: App) -> None:
    proxy = make_proxy().start()
    kept, lost = proxy.open(app, private=True), Route(new_host(), RouteState.STARTING)
    files = ProxyFiles(proxy.directory)
    proxy.run(runtime_api.set_entry(files.admin_socket, files.routes, "odd.localhost", "open|secret|127.0.0.1|1|-|-"))
    proxy.previews = proxy.service()

    async def routes_without(hosts: Collection[str]) -> list[Route]:
        assert set(hosts) == {kept}
        return [lost]

    proxy.run(proxy.previews.start(routes_without))
    assert proxy.run(proxy.previews.routes()).keys() == {kept, lost.host}
    assert [proxy.visitor.get(host).status for host in (kept, lost.host, "odd.localhost")] == [401, 503, 404]


def test_a_changed_setting_is_taken_over_by_a_reload(make_proxy: Make, app: App) -> None:
    proxy = make_proxy(timeouts=Timeouts(drain=30)).start()
    host, master, worker = proxy.open(app), master_of(proxy), worker_of(proxy)
    with proxy.visitor.dial() as connection:
        connection.sendall(f"GET /slow?0.5 HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        eventually(lambda: host in proxy.activity())
        proxy.previews = proxy.service(threads=1)
        proxy.start()
        assert connection.recv(12) == b"HTTP/1.1 200"
    assert master_of(proxy) == master
    assert worker_of(proxy) != worker
    assert proxy.visitor.get(host).status == 200
    # A reload by hand finds no route: an address in an older one may be another app's by then.
    assert ProxyFiles(proxy.directory).routes.read_text() == ""


def test_no_old_connection_outlives_a_reload_to_miss_later_routes(make_proxy: Make, app: App) -> None:
    proxy = make_proxy().start()
    host, worker = proxy.open(app), worker_of(proxy)
    with proxy.visitor.dial() as idle, proxy.visitor.dial() as busy:
        assert ask(idle, host).status == 200
        busy.sendall(f"GET /events HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert busy.recv(12) == b"HTTP/1.1 200"
        proxy.previews = proxy.service(threads=1)
        proxy.start()
        assert not alive(worker)
        assert idle.recv(1) == b""


def test_interrupted_change_is_repaired_by_the_next_read(
    make_proxy: Make, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = make_proxy().start()
    host, gone = proxy.open(app), proxy.open(app)

    async def never(*_: object, **__: object) -> None:
        await asyncio.sleep(60)

    async def break_off() -> None:
        for change in (proxy.previews.put(route_to(app, private=True, host=host)), proxy.previews.remove(gone)):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await change

    with monkeypatch.context() as broken:
        broken.setattr(runtime_api, "set_entry", never)
        broken.setattr(runtime_api, "delete_entry", never)
        proxy.run(break_off())
    assert {proxy.visitor.get(one).status for one in (host, gone)} == {200}
    route = proxy.run(proxy.previews.get(host))
    assert route is not None
    assert route.token_hash is not None
    assert proxy.run(proxy.previews.get(gone)) is None
    assert [proxy.visitor.get(one).status for one in (host, gone)] == [401, 404]


def test_a_setting_that_does_not_work_leaves_the_old_one(
    make_proxy: Make, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = make_proxy().start()
    host = proxy.open(app)
    with monkeypatch.context() as upgraded:
        newer = pause.script() + "-- of a newer version\n"
        upgraded.setattr(pause, "script", lambda: newer)
        for _ in range(2):
            # For two seconds, the new worker has the old one leave its ports. An old one that gets no CPU then is
            # told to leave and to take them at once.
            worker = worker_of(proxy)
            for seconds, sign in ((0.5, signal.SIGSTOP), (3.5, signal.SIGCONT)):
                threading.Timer(seconds, os.kill, (worker, sign)).start()
            with pytest.raises(EngineUnavailable, match=f"port {app.port}.*taken"):
                proxy.run(proxy.service(port=app.port).start())
            assert proxy.visitor.get(host).status == 200
    proxy.previews = proxy.service()
    proxy.start()
    assert proxy.visitor.get(host).status == 200


def test_down_leaves_nothing(make_proxy: Make, app: App) -> None:
    proxy = make_proxy().start()
    proxy.open(app)
    master, worker = master_of(proxy), worker_of(proxy)
    proxy.run(proxy.previews.down())
    assert not proxy.directory.exists()
    assert not any(Path(f"/proc/{pid}/cmdline").exists() and alive(pid) for pid in (master, worker))
    with pytest.raises(ConnectionRefusedError):
        proxy.visitor.get("a.localhost")


def test_two_services_do_not_disturb_each_other(make_proxy: Make, app: App, neighbour: App) -> None:
    one, other = make_proxy().start(), make_proxy().start()
    host = one.open(app)
    assert other.visitor.get(host).status == 404
    other.open(neighbour, host=host)
    assert one.visitor.get(host).json["name"] == "app"
    assert other.visitor.get(host).json["name"] == "neighbour"
    other.run(other.previews.down())
    assert one.visitor.get(host).status == 200


def test_a_missing_program_is_named(make_proxy: Make) -> None:
    with pytest.raises(EngineUnavailable, match="install Debian's package haproxy"):
        make_proxy(program="haproxy-of-nowhere").start()


def test_too_long_socket_path_is_reported(make_proxy: Make) -> None:
    proxy = make_proxy()
    proxy.directory = proxy.directory / ("x" * 100)
    proxy.previews = proxy.service()
    with pytest.raises(EngineUnavailable, match="shorter data directory"):
        proxy.start()


@pytest.mark.parametrize("name", ['a"b', "a'b", "a$HOME", "a,b", "a)b", "a\nb"])
def test_a_directory_that_cannot_be_written_down_is_refused(make_proxy: Make, name: str) -> None:
    proxy = make_proxy()
    proxy.directory = proxy.directory / name
    proxy.previews = proxy.service()
    with pytest.raises(EngineUnavailable, match="another data directory"):
        proxy.start()


def master_of(proxy: Proxy) -> int:
    files = ProxyFiles(proxy.directory)
    found = process.find_process(files.pid, files)
    assert found is not None
    return found.pid


def worker_of(proxy: Proxy) -> int:
    info = proxy.run(runtime_api.ask(proxy.directory / "admin.sock", "show info"))
    return int(next(line.split(": ")[1] for line in info.splitlines() if line.startswith("Pid: ")))


def kill(proxy: Proxy, victim: str = "master") -> None:
    pids = master_of(proxy), worker_of(proxy)
    os.kill(pids[victim == "worker"], signal.SIGKILL)
    eventually(lambda: not any(alive(pid) for pid in pids))


def alive(pid: int) -> bool:
    state = subprocess.run(("ps", "-o", "stat=", "-p", str(pid)), capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")
