"""The proxy ends at its deadline, also while no service runs, and the service does not start it again."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from tests.integration.previews.test_life import master_of
from tests.integration.previews.test_survival import processes_of
from tests.previews.proxy import App, Proxy, eventually

from builderd.core.errors import EngineUnavailable
from builderd.previews.haproxy import process

pytestmark = pytest.mark.haproxy


def now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def fences(proxy: Proxy) -> list[int]:
    found = process.find_process(proxy.previews._files.fence_pid, proxy.previews._files)
    return [found.pid] if found is not None else []


def test_proxy_ends_at_its_deadline_and_stays_ended(make_proxy: Callable[..., Proxy], app: App) -> None:
    proxy = make_proxy().start()
    host = proxy.open(app)
    deadline = now() + 2
    proxy.run(process.set_deadline(proxy.previews._files, deadline))
    assert proxy.visitor.get(host).status == 200
    eventually(lambda: len(processes_of(proxy)) == 1)
    assert deadline <= now() <= deadline + 5
    with pytest.raises(OSError):
        proxy.visitor.get(host)
    # The service's own supervision, as after a SIGSTOP, does not start it either.
    with pytest.raises(EngineUnavailable, match="did not renew its lease"):
        proxy.run(proxy.previews.start())
    assert len(processes_of(proxy)) == len(fences(proxy)) == 1


def test_proxy_whose_start_was_under_way_at_the_deadline_ends(
    make_proxy: Callable[..., Proxy], app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = make_proxy().start()
    proxy.open(app)
    proxy.run(process.set_deadline(proxy.previews._files, now() - 100))
    eventually(lambda: len(processes_of(proxy)) == 1)
    with monkeypatch.context() as patch:
        patch.setattr(process, "is_past", lambda _: False)
        proxy.run(proxy.previews.start())
    eventually(lambda: len(processes_of(proxy)) == 1)


def test_deadline_is_moved_and_lifted(make_proxy: Callable[..., Proxy], app: App) -> None:
    proxy = make_proxy().start()
    host, files = proxy.open(app), proxy.previews._files
    master = master_of(proxy)
    first = now() + 3
    for deadline in (first, first + 600):
        proxy.run(process.set_deadline(files, deadline))
    assert len(fences(proxy)) == 1
    eventually(lambda: now() > first + 2)
    assert proxy.visitor.get(host).status == 200
    proxy.run(process.lift(files))
    assert fences(proxy) == []
    assert master_of(proxy) == master
    assert proxy.visitor.get(host).status == 200
    proxy.run(process.lift(files))


def test_taken_down_proxy_has_no_fence(make_proxy: Callable[..., Proxy]) -> None:
    proxy = make_proxy().start()
    proxy.run(process.set_deadline(proxy.previews._files, now() + 60))
    assert fences(proxy)
    proxy.run(proxy.previews.down())
    assert fences(proxy) == []
