"""Impossible and countless requests to the launcher: each is answered, and none harms what others started."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from builderd.engine.oci.runtime.launcher import MAX_DESCRIPTORS

SERVER = """
import socket, sys
from builderd.engine.oci.runtime.launcher import Server
control = socket.socket(fileno=int(sys.argv[1]))
control.set_inheritable(False)
Server(control).serve()
"""
RUN: dict[str, Any] = {
    "op": "run",
    "argv": ["/bin/true"],
    "env": {},
    "cwd": "/",
    "fds": [],
    "mounts": [],
    "cgroups": [],
    "uid": -1,
    "network": None,
    "terminal": False,
    "oom_score": 0,
    "name": "",
}
LINK = {"folder": "/f", "link": "l", "bridge": "b", "mac": "02", "ip": "10.0.0.2", "gateway": "10.0.0.1", "mtu": 1500}
BIND = {"kind": "bind", "source": "/a", "target": "/b", "attributes": 0, "owner": None}
MANY = 2000


class Attacked:
    """A launcher's server in a process of its own, for all attacks."""

    def __init__(self) -> None:
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.ours.settimeout(60)
        with theirs:
            command = [sys.executable, "-c", SERVER, str(theirs.fileno())]
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        self.send(request(1, {"op": "kill", "name": "none"}))
        assert self.answer() == {"id": 1}
        self.descriptors = self.count()

    def send(self, packet: bytes, descriptors: Sequence[int] = ()) -> None:
        socket.send_fds(self.ours, [packet], descriptors)

    def answer(self) -> dict[str, Any]:
        answer = json.loads(self.ours.recv(1 << 20))
        assert isinstance(answer, dict)
        return answer

    def count(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def assert_unharmed(self) -> None:
        """Assert that it runs programs, and has no more descriptors and children than before."""
        self.send(request(99, RUN))
        assert self.answer() == {"id": 99, "status": 0, "error": ""}
        assert self.count() == self.descriptors
        assert Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text() == ""


@pytest.fixture(scope="module")
def attacked() -> Iterator[Attacked]:
    attacked = Attacked()
    with contextlib.closing(attacked.ours):
        yield attacked
    assert attacked.process.wait(60) == 0, "it ends with the service"


def request(number: int, request: dict[str, Any]) -> bytes:
    return json.dumps({"id": number, **request}).encode()


REFUSED: dict[str, dict[str, Any]] = {
    "a word with a NUL": RUN | {"argv": ["/bin/true", "a\0b"]},
    "an environment that is a list": RUN | {"env": ["A=1"]},
    "a mount on a text with a NUL": RUN | {"mounts": [{"kind": "tmpfs", "target": "/a\0/b"}]},
    "descriptors that did not come": RUN | {"fds": [0, 1, 2]},
    "a network that the host has not": RUN | {"network": LINK},
    "an owner beyond ids": RUN | {"mounts": [BIND | {"owner": 1 << 60}]},
    "a namespace that maps ids beyond all": RUN | {"uid": (1 << 32) - 2, "mounts": [BIND | {"owner": 5}]},
}


@pytest.mark.parametrize("refused", REFUSED.values(), ids=REFUSED)
def test_impossible_request_is_answered_with_an_error_and_does_nothing(
    attacked: Attacked, refused: dict[str, Any]
) -> None:
    attacked.send(request(7, refused))
    answer = attacked.answer()
    assert answer["id"] == 7
    assert 0 < len(answer["error"]) <= 4096
    assert answer.get("status", 127) == 127, "refused, or failed in a child of its own"
    attacked.assert_unharmed()


IMPOSSIBLE: list[dict[str, Any]] = [
    {"argv": ["/" + "x" * 100_000]},
    {"cwd": "/" + "x" * 100_000},
    {"env": {"a=": "\ud800"}},
    {"mounts": [{"kind": "nofs", "target": "/"}]},
    {"mounts": [BIND]},
    {"cgroups": ["/nowhere/tasks"]},
    {"oom_score": 1 << 40},
]


@pytest.mark.parametrize("changes", IMPOSSIBLE, ids=lambda changes: next(iter(changes)))
def test_program_that_cannot_be_executed_gets_a_bounded_error(attacked: Attacked, changes: dict[str, Any]) -> None:
    attacked.send(request(7, RUN | changes))
    answer = attacked.answer()
    assert (answer["id"], answer["status"]) == (7, 127)
    assert 0 < len(answer["error"]) <= 4096
    attacked.assert_unharmed()


def test_descriptors_of_refused_requests_are_closed(attacked: Attacked) -> None:
    """Too many, and too few: the other end of each pipe ends."""
    for count in (MAX_DESCRIPTORS + 20, 1):
        read, write = os.pipe()
        attacked.send(request(7, RUN), [write] * count)
        os.close(write)
        assert attacked.answer()["error"]
        assert os.read(read, 1) == b"", "nobody has the other end open"
        os.close(read)
    attacked.assert_unharmed()


def test_answers_that_nobody_reads_wait_and_none_is_lost(attacked: Attacked) -> None:
    attacked.ours.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while sent < 100_000:
            attacked.send(request(sent + 10, {"op": "kill", "name": "none"}))
            sent += 1
    assert 100 < sent < 100_000, "both queues are full"
    attacked.ours.settimeout(60)
    assert [attacked.answer()["id"] for _ in range(sent)] == list(range(10, sent + 10))
    attacked.assert_unharmed()


def test_without_free_descriptors_each_request_fails_alone(attacked: Attacked) -> None:
    """Meet the limit of descriptors: neither a program nor a descriptor is left, and the next request succeeds."""
    pid = attacked.process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    null = os.open("/dev/null", os.O_RDWR)
    # Between none at all and all that a program needs.
    for free in range(8):
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (attacked.descriptors + free, limits[1]))
        for number, (fields, count) in enumerate(
            [
                (RUN | {"fds": [0, 1], "argv": ["/bin/cat"]}, 2),
                (RUN | {"uid": 700_000, "mounts": [BIND | {"owner": owner} for owner in range(5)]}, 0),
                (RUN | {"network": LINK}, 0),
            ]
        ):
            attacked.send(request(10 + number, fields), [null] * count)
            answer = attacked.answer()
            assert answer["id"] == 10 + number
            assert answer.get("error") or answer["status"] in (0, 127)
    os.close(null)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    attacked.assert_unharmed()
