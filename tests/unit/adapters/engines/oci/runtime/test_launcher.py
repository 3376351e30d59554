"""Launcher's server without root: what becomes of its children, and of its descriptors when it cannot fork."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from builderd.adapters.engines.oci.runtime import launcher as attach_module
from builderd.adapters.engines.oci.runtime.launcher import Link, Server, attach


def _server() -> tuple[Server, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Server(theirs), ours


RUN: dict[str, Any] = {
    "op": "run",
    "argv": ["/bin/true"],
    "env": {},
    "cwd": "/",
    "fds": [],
    "mounts": [],
    "cgroups": [],
    "uid": 1,
    "terminal": False,
    "oom_score": 0,
    "name": "one",
}


def test_without_a_child_no_descriptor_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    server, _ours = _server()
    monkeypatch.setattr(os, "fork", refuse)
    before = open_descriptors()
    with pytest.raises(BlockingIOError):
        server._handle({"id": 1, **RUN}, [])
    assert open_descriptors() == before


def test_a_child_that_cannot_be_watched_is_killed_and_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    server, _ours = _server()
    child = subprocess.Popen(["/bin/sleep", "1000"])

    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "fork", lambda *_: child.pid)
    monkeypatch.setattr(os, "pidfd_open", refuse)
    before = open_descriptors()
    with pytest.raises(OSError, match="Too many open files"):
        server._handle({"id": 1, **RUN}, [])
    assert open_descriptors() == before
    assert not Path(f"/proc/{child.pid}").exists(), "killed and reaped"
    assert server._named == {}


def test_a_program_that_ends_leaves_its_name_to_the_one_that_took_it() -> None:
    server, _ours = _server()
    read, write = os.pipe()
    server._named["one"] = 18
    child = subprocess.Popen(["/bin/true"])  # without a name, Python itself would reap it
    server._ended({"id": 1, "name": "one"}, child.pid, read)
    assert server._named == {"one": 18}
    os.close(write)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def forbid(*_: object) -> int:
    raise AssertionError("done to the host")


def test_a_link_is_made_in_no_network_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("limit", "connect"):
        monkeypatch.setattr(attach_module, name, forbid)
    with pytest.raises(OSError, match="a process of the host"):
        attach(os.getpid(), Link("link", "lo", "02", "10.0.0.2", "10.0.0.1", 1500))
