"""The command, and the message for a proxy that does not start."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from builderd.adapters.previews.haproxy.options import ProxyFiles, ProxyOptions
from builderd.adapters.previews.haproxy.process import command, explain, host


def test_haproxy_runs_as_master_and_worker_in_the_background() -> None:
    argv = command("/usr/sbin/haproxy", ProxyFiles(Path("/d")))
    assert argv[1:3] == ("-W", "-D")
    assert "/d/master.sock,mode,600" in argv


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (
            "[ALERT]    (12) : Binding [x.cfg:34] for frontend visitors: cannot bind socket (Address already in use) "
            "for [127.0.0.1:8081]",
            "port 8081, which another program has taken",
        ),
        (
            "[ALERT]    (12) : Binding [x.cfg:34] for frontend visitors: cannot bind socket (Permission denied)",
            "run as root, or choose one above 1023",
        ),
        (
            "[NOTICE]   (1) : version\n[ALERT]    (1) : config : no such thing\n",
            "does not start: config : no such thing",
        ),
        ("killed by the weather", "killed by the weather"),
        ("", "HAProxy printed nothing"),
    ],
)
def test_a_failed_start_is_explained(told: str, said: str) -> None:
    assert said in explain(told, ProxyOptions())


@pytest.mark.parametrize(("descriptors", "room"), [(1_000_000, 20_000), (1024, 412), (10, 1), (-1, 20_000)])
def test_no_more_connections_than_there_are_descriptors(
    monkeypatch: pytest.MonkeyPatch, descriptors: int, room: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (10, descriptors))
    assert host(ProxyOptions()).max_connections == room


@pytest.mark.parametrize(("uid", "user"), [(0, True), (1000, False)])
def test_only_root_has_a_user_to_become(monkeypatch: pytest.MonkeyPatch, uid: int, user: bool) -> None:
    monkeypatch.setattr("os.geteuid", lambda: uid)
    assert (host(ProxyOptions()).user is not None) is user
