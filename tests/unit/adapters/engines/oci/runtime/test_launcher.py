"""Launcher's server without root: what becomes of its children, and of its descriptors when it cannot fork."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from builderd.adapters.engines.oci.runtime import attach, launcher
from builderd.adapters.engines.oci.runtime.join import STREAMS
from builderd.adapters.engines.oci.runtime.launcher import Server
from builderd.adapters.engines.oci.runtime.requests import JOIN_DESCRIPTORS
from builderd.adapters.engines.oci.runtime.start import Helper

#: A server in a process of its own, whose joining child does as ``join`` says. Descriptors of a request: to the test,
#: and from it.
SERVED = textwrap.dedent("""
    import ctypes, json, os, signal, socket, struct, time
    from builderd.adapters.engines.oci.runtime import attach, launcher

    # Holds the interpreter's lock during the call: a child that began inside would have to take it.
    libc = ctypes.PyDLL(None)

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(30)
    heard, hear = os.pipe()
    said, say = os.pipe()

    def start_joining(joiner, descriptors, told, tell):
        if (pid := os.fork()) == 0:
            join(descriptors, tell)
        return pid

    def start(end):
        # As ``clone_beside`` of join.c.
        if (pid := libc.syscall(435, struct.pack("8Q", 0x8000, *[0] * 7), 64)) == 0:
            end()
            os._exit(7)
        return pid

    def state(pid):
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]

    def wait_until(condition):
        while not condition():
            time.sleep(0.001)

    def ask(request, descriptors=()):
        socket.send_fds(ours, [json.dumps(request).encode()], descriptors)

    def answer():
        return json.loads(ours.recv(4096))
""")
SERVE = textwrap.dedent("""
    launcher.start_joining = start_joining
    if (server_pid := os.fork()) == 0:
        ours.close()
        server = launcher.Server(theirs)
        server._strays = strays
        server.serve()
        os._exit(0)
    theirs.close()
    ask({"id": 1, "op": "join", "name": "one"}, [hear, said, said, said, said])
""")

#: The program ends before the joining child tells of it, while other requests and lost children keep the server busy.
LATE = """
strays = True

def join(descriptors, tell):
    hear, said, *_ = descriptors
    pid = start(lambda: None)
    wait_until(lambda: state(pid) == "Z")
    os.write(hear, b"z")
    os.read(said, 1)
    os.write(tell, str(pid).encode())
    os._exit(0)
"""
LATE_TEST = """
os.read(heard, 1)
for number in (2, 3):
    ask({"id": number, "op": "kill", "name": "none"})
    assert answer()["id"] == number
os.write(say, b"g")
print(json.dumps(answer()))
ask({"id": 4, "op": "kill", "name": "none"})
print(json.dumps(answer()))
"""

#: The joining child is killed before it could tell what it has started.
KILLED = """
strays = False

def join(descriptors, tell):
    hear, said, *_ = descriptors
    pid = start(lambda: os.read(said, 1))
    os.write(hear, str(pid).encode())
    os.kill(os.getpid(), signal.SIGKILL)
"""
KILLED_TEST = """
pid = int(os.read(heard, 100))
print(json.dumps(answer()))
os.write(say, b"g")
wait_until(lambda: not os.path.exists(f"/proc/{pid}"))
ask({"id": 4, "op": "kill", "name": "one"})
print(json.dumps(answer()))
"""


def serve(join: str, test: str) -> list[dict[str, Any]]:
    script = SERVED + join + SERVE + test
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_program_that_ends_before_it_is_known_is_no_stray() -> None:
    assert serve(LATE, LATE_TEST) == [{"id": 1, "status": 7, "error": ""}, {"id": 4}]


def test_the_end_of_a_killed_joining_child_is_an_error_and_what_it_started_is_reaped() -> None:
    assert serve(KILLED, KILLED_TEST) == [{"id": 1, "error": "the joining process was killed"}, {"id": 4}]


def test_a_program_that_cannot_be_watched_fails_alone() -> None:
    """Another has reaped it; the server goes on."""
    server, ours = _server()
    told, tell = os.pipe()
    os.write(tell, str(1 << 22).encode())  # above every pid
    os.close(tell)
    server._joining, server._named["one"] = 1, 17
    server._joined({"id": 1, "name": "one"}, 17, told, 0)
    assert "error" in json.loads(ours.recv(4096))
    assert (server._named, server._joining, server._strays) == ({}, 0, True)


def _server(joiner: str = "") -> tuple[Server, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Server(theirs, joiner), ours


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
CLAIM: dict[str, Any] = {"op": "claim", "uid": 1, "binds": []}
JOIN: dict[str, Any] = {"op": "join", "name": "one"}
LINK = {"link": "link", "bridge": "lo", "mac": "02", "ip": "10.0.0.2", "gateway": "10.0.0.1", "mtu": 1500}
ATTACH: dict[str, Any] = {"op": "attach", "pid": os.getpid(), "network": LINK}


@pytest.mark.parametrize(
    ("request_", "program", "call"),
    [
        pytest.param(RUN, "", "fork", id="run by a fork"),
        pytest.param(RUN, "/program", "spawn", id="run by the program"),
        pytest.param(CLAIM, "/program", "fork", id="claim"),
        pytest.param(JOIN, "/program", "spawn", id="join"),
        pytest.param(ATTACH, "", "fork", id="attach by a fork"),
        pytest.param(ATTACH, "/program", "spawn", id="attach by the program"),
    ],
)
def test_without_a_child_no_descriptor_stays_open(
    monkeypatch: pytest.MonkeyPatch, request_: dict[str, Any], program: str, call: str
) -> None:
    calls = []

    def refuse(call: str) -> int:
        calls.append(call)
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    server, _ours = _server(program)
    monkeypatch.setattr(os, "fork", lambda: refuse("fork"))
    monkeypatch.setattr(os, "posix_spawn", lambda *_: refuse("spawn"))
    monkeypatch.setattr(attach, "refuse_own", lambda *_: None)
    before = open_descriptors()
    with pytest.raises(BlockingIOError):
        server._handle({"id": 1, **request_}, [])
    assert (calls, open_descriptors()) == ([call], before)


def test_a_join_has_the_descriptors_that_the_joining_child_reads() -> None:
    assert JOIN_DESCRIPTORS == STREAMS + 2


@pytest.mark.parametrize("request_", [RUN, JOIN], ids=["run", "join"])
@pytest.mark.parametrize("refused", ["pidfd_open", "epoll_ctl"])
def test_a_child_that_cannot_be_watched_is_killed_and_leaves_no_descriptor(
    monkeypatch: pytest.MonkeyPatch, request_: dict[str, Any], refused: str
) -> None:
    server, _ours = _server()
    children = []

    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def fork(*_: object) -> int:
        children.append(subprocess.Popen(["/bin/sleep", "1000"]))
        return children[0].pid

    monkeypatch.setattr(launcher, "fork_or_close", fork)
    monkeypatch.setattr(launcher, "start_joining", fork)
    if refused == "pidfd_open":
        monkeypatch.setattr(os, "pidfd_open", refuse)
    else:
        monkeypatch.setattr(server._selector, "register", refuse)
    before = open_descriptors()
    with pytest.raises(OSError, match="Too many open files"):
        server._handle({"id": 1, **request_}, [])
    assert open_descriptors() == before
    assert children[0].wait(30) == -signal.SIGKILL
    assert (server._named, server._children, server._joining, server._strays) == ({}, set(), 0, True)


@pytest.mark.parametrize("kind", ["gone", "not executable", "no program"])
def test_an_answer_about_a_broken_joining_program_has_no_path(tmp_path: Path, kind: str) -> None:
    joiner = tmp_path / "joiner"
    if kind != "gone":
        joiner.write_bytes(bytes(100))
        joiner.chmod(0o755 if kind == "no program" else 0o644)
    server, ours = _server(str(joiner))
    before = open_descriptors()
    server._handle({"id": 1, "op": "join", "name": "one"}, [])
    answer = json.loads(ours.recv(4096))
    assert (set(answer), answer["id"]) == ({"id", "no_joiner"}, 1)
    assert str(tmp_path) not in answer["no_joiner"]
    assert (open_descriptors(), server._named, server._joining) == (before, {}, 0)


def test_a_machine_that_cannot_start_it_now_is_no_fault_of_the_joining_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, *_: object) -> int:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), path)

    server, _ours = _server("/var/lib/joiner")
    monkeypatch.setattr(os, "posix_spawn", refuse)
    with pytest.raises(OSError, match="Cannot allocate memory") as raised:
        server._handle({"id": 1, "op": "join", "name": "one"}, [])
    assert "/var/lib" not in launcher.describe(raised.value)


@pytest.mark.parametrize("request_", [RUN, ATTACH], ids=["run", "attach"])
def test_a_program_that_cannot_be_executed_is_reported_and_tried_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, request_: dict[str, Any]
) -> None:
    spawned, spawn = [], os.posix_spawn

    def counted(path: str, *words: Any) -> int:
        spawned.append(path)
        return spawn(path, *words)

    def refuse() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    server, ours = _server(str(tmp_path / "gone"))
    monkeypatch.setattr(os, "posix_spawn", counted)
    monkeypatch.setattr(os, "fork", refuse)
    monkeypatch.setattr(attach, "refuse_own", lambda *_: None)
    for _ in range(2):
        with pytest.raises(BlockingIOError):
            server._handle({"id": 1, **request_}, [])
    assert spawned == [str(tmp_path / "gone")]
    event = "programs are started by a fork until a restart"
    assert capsys.readouterr().err == f"launcher: {event} program={tmp_path}/gone error=No such file or directory\n"
    server._handle({"id": 2, **JOIN}, [])
    assert json.loads(ours.recv(4096)) == {"id": 2, "no_joiner": "No such file or directory"}


def test_words_that_are_too_long_are_not_the_programs_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    helper = Helper("/bin/true")
    assert helper.spawn(["x" * (1 << 20)], {}, []) is None
    assert helper.spawn(["x\0"], {}, []) is None
    assert (helper.path, capsys.readouterr().err) == ("/bin/true", "")


def test_a_runtime_that_cannot_be_mounted_read_only_is_reported(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    launcher.mount_read_only(str(tmp_path / "gone"))
    assert capsys.readouterr().err.startswith("launcher: program not mounted read-only, its commands take longer")


def test_it_waits_for_strays_no_longer_than_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    server, ours = _server()
    timeouts, select, left = [], server._selector.select, [True, False]

    def noted(timeout: float | None) -> Any:
        timeouts.append(timeout)
        if timeout is None:
            ours.close()
        return select(timeout)

    monkeypatch.setattr(launcher, "STRAYS_SECONDS", 0.01)
    monkeypatch.setattr(launcher, "reap_strays", lambda _: left.pop(0))
    monkeypatch.setattr(server._selector, "select", noted)
    server._strays = True
    server.serve()
    assert timeouts == [0.01, 0.01, None]


def test_a_program_that_ends_leaves_its_name_to_the_one_that_took_it() -> None:
    server, _ours = _server()
    server._named["one"] = 18
    server._answer_end({"id": 1, "name": "one"}, 17, None, 0)
    assert server._named == {"one": 18}


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
