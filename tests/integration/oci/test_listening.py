"""Listening sockets in another network namespace, queried both ways."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from builderd.adapters.engines.oci.runtime import listening
from builderd.adapters.engines.oci.runtime.listening import NoSocketDiag

pytestmark = pytest.mark.root

#: Listens on (family, address, port) of its arguments, with an address {} for each of a range.
PROGRAM = """
import socket, subprocess, sys
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
held = []
for words in sys.argv[1:]:
    family, address, ports = words.split(",")
    for port in range(*map(int, ports.split("-"))):
        one = socket.socket(socket.AF_INET if family == "4" else socket.AF_INET6)
        one.bind((address, port))
        one.listen()
        held.append(one)
idle = socket.create_connection(held[0].getsockname()[:2])
print("ready", flush=True)
sys.stdin.read()
"""
SOCKETS = {
    ("0.0.0.0", 8000),
    ("127.0.0.1", 8001),
    ("::1", 8002),
    ("::", 8003),
    ("::ffff:127.0.0.1", 8004),
}
Listen = Callable[..., int]


@pytest.fixture
def listen() -> Iterator[Listen]:
    """Starts the program in a network of its own; its process id."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*words: str) -> int:
        process = subprocess.Popen(
            ["unshare", "--net", "prlimit", "--nofile=20000", sys.executable, "-c", PROGRAM, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return process.pid

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def five(listen: Listen) -> int:
    return listen(
        "4,0.0.0.0,8000-8001",
        "4,127.0.0.1,8001-8002",
        "6,::1,8002-8003",
        "6,::,8003-8004",
        "6,::ffff:127.0.0.1,8004-8005",
    )


def test_listening_sockets_are_returned_without_connections(five: int) -> None:
    assert listening.listening(five, 8000) == SOCKETS
    assert listening.listening(five, 9000) == SOCKETS


def test_query_returns_to_its_own_network_namespace(five: int) -> None:
    own, files = Path("/proc/thread-self/ns/net"), Path("/proc/self/fd")
    before, held = own.readlink(), len(list(files.iterdir()))
    listening.listening(five, 8000)
    assert own.readlink() == before != Path(f"/proc/{five}/ns/net").readlink()
    assert len(list(files.iterdir())) == held


def test_a_kernel_that_does_not_answer_is_read(five: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "_SOCK_DIAG_BY_FAMILY", 99)
    monkeypatch.setattr(listening, "_LACKING", (22,))  # EINVAL, what the kernel says of such a question
    with pytest.raises(NoSocketDiag):
        listening.listening(five, 8000)
    assert listening.listening_sockets_of(five, 8000) == SOCKETS


def test_ten_thousand_sockets_hide_no_port_and_cost_no_time(listen: Listen) -> None:
    hostile = listen("4,127.0.0.1,20000-30000", "4,0.0.0.0,9000-9001", "6,::1,20000-22000")
    told = listening.listening(hostile, 9000)
    assert ("0.0.0.0", 9000) in told
    assert len(told) < 500, "each look would keep the whole service busy"


def test_ended_process_has_no_listening_sockets(listen: Listen) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert listening.listening_sockets_of(ended.pid, 8000) == frozenset()
    zombie = subprocess.Popen(["true"])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    assert listening.listening_sockets_of(zombie.pid, 8000) == frozenset()
    zombie.wait()
