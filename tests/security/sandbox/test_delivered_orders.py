"""Attacks of an app on the program of root that lists its ports on Incus while it starts, and on its order."""

from __future__ import annotations

from typing import Any

import pytest
from tests.acceptance.live_service import LiveService, body
from tests.acceptance.scenarios import Visitor
from tests.patience import patience

from builderd.engine.incus.image import FOLDER

pytestmark = pytest.mark.root

SMALL = {"cpu": 1, "memory": 0.25, "disk": 1}
SERVE = """
class App(BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

HTTPServer(("0.0.0.0", 8000), App).serve_forever()
"""
#: Finds the program, tries everything on it before the app listens, and serves what succeeded.
ATTACKS = (
    f"""
import ctypes, json, os, signal, time
from http.server import BaseHTTPRequestHandler, HTTPServer

PROGRAM = "{FOLDER}/ports"
"""
    """
libc = ctypes.CDLL(None, use_errno=True)
told = {"commands": [], "succeeded": [], "states": []}

def programs():
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/cmdline") as file:
                words = file.read().split("\\0")[:-1]
        except OSError:
            continue
        if PROGRAM in words and int(name) != os.getpid():
            yield int(name), words

def attempt(name, attack):
    try:
        attack()
    except (OSError, IndexError):
        return
    told["succeeded"].append(name)

def call(number, *arguments):
    if libc.syscall(number, *arguments) == -1:
        raise OSError(ctypes.get_errno(), "refused")

def read(path):
    with open(path, "rb") as file:
        file.read(1)

def write(path, content):
    with open(path, "wb", buffering=0) as file:
        file.write(content)

def memory(pid):
    with open("/proc/self/maps") as file:
        start = int(file.readline().split("-")[0], 16)
    with open(f"/proc/{pid}/mem", "rb+", buffering=0) as file:
        file.seek(start)
        file.read(1)

def vector():
    kept = ctypes.create_string_buffer(8)
    return (ctypes.c_uint64 * 2)(ctypes.addressof(kept), 8)

def attack(pid):
    at = f"/proc/{pid}"
    for name in ("environ", "maps", "smaps", "auxv", "io", "stack", "syscall", "pagemap", "personality"):
        attempt("read " + name, lambda: read(f"{at}/{name}"))
    for name in ("fd", "fdinfo", "map_files", "ns"):
        attempt("list " + name, lambda: [os.readlink(f"{at}/{name}/{one}") for one in os.listdir(f"{at}/{name}")][0])
    for name in ("cwd", "root", "exe", "fd/0", "fd/1"):
        attempt("follow " + name, lambda: os.readlink(f"{at}/{name}"))
    for name in ("fd/0", "fd/1", "fd/2"):
        attempt("write to " + name, lambda: write(f"{at}/{name}", b"0: 00000000:1F40 0 0A\\n0 0 0\\n\\0"))
    attempt("memory", lambda: memory(pid))
    for name in ("oom_score_adj", "comm", "coredump_filter", "timerslack_ns", "autogroup", "clear_refs"):
        attempt("write " + name, lambda: write(f"{at}/{name}", b"1"))
    for one in (signal.SIGCONT, signal.SIGSTOP, signal.SIGTERM, signal.SIGPIPE, signal.SIGKILL):
        attempt(f"kill {one}", lambda: os.kill(pid, one))
        attempt(f"tgkill {one}", lambda: call(234, pid, pid, one))
    attempt("ptrace attach", lambda: call(101, 16, pid, 0, 0))
    attempt("ptrace seize", lambda: call(101, 0x4206, pid, 0, 0))
    attempt("process_vm_readv", lambda: call(310, pid, vector(), 1, vector(), 1, 0))
    attempt("process_vm_writev", lambda: call(311, pid, vector(), 1, vector(), 1, 0))
    attempt("pidfd_getfd", lambda: call(438, os.pidfd_open(pid), 1, 0))
    attempt("pidfd_send_signal", lambda: signal.pidfd_send_signal(os.pidfd_open(pid), signal.SIGKILL))
    attempt("kcmp", lambda: call(312, pid, os.getpid(), 2, 0, 0))
    attempt("prlimit", lambda: call(302, pid, 0, (ctypes.c_uint64 * 2)(1, 1), None))
    attempt("setpriority", lambda: os.setpriority(os.PRIO_PROCESS, pid, 19))
    attempt("affinity", lambda: os.sched_setaffinity(pid, os.sched_getaffinity(0)))
    attempt("scheduler", lambda: os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0)))
    attempt("ioprio_set", lambda: call(251, 1, pid, 3 << 13))
    attempt("setpgid", lambda: os.setpgid(pid, os.getpgid(0)))

for name in ("", "/order", "/out", "/err", "/stuck", "/environment"):
    attempt("read /run/builderd" + name, lambda: read("/run/builderd" + name))
    attempt("write /run/builderd" + name, lambda: write("/run/builderd" + name, b"x"))
attempt("list /run/builderd", lambda: os.listdir("/run/builderd"))
attempt("replace it", lambda: write(PROGRAM, b"#!/bin/sh"))
until = time.monotonic() + 20
while not (found := list(programs())) and time.monotonic() < until:
    time.sleep(0.001)
for pid, words in found:
    told["commands"].append(words)
    attack(pid)
    with open(f"/proc/{pid}/stat") as file:
        told["states"].append(file.read().rpartition(")")[2].split()[0])
""" + SERVE
)


def test_app_cannot_reach_the_program_that_lists_its_ports(arena: LiveService) -> None:
    data = arena.create("order-thief", ATTACKS, resources=SMALL, env={"WORD": "of the order"})
    told: dict[str, Any] = arena.visit(data).json()
    assert told["commands"][0] == ["/usr/bin/perl", f"{FOLDER}/ports"], "no variables among its arguments"
    assert told["succeeded"] == []
    assert told["states"][0] in "RSD", "neither stopped nor ended"
    arena.call("DELETE", f"/builders/{data['uuid']}")


#: Opens many listening sockets, closes and opens them again, fills the queue of each, and opens its own port at last.
CROWD = (
    """
import json, os, resource, socket, time
from http.server import BaseHTTPRequestHandler, HTTPServer

told, kept = {}, []
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)

def listener(family, port):
    made = socket.socket(family)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("", port))
    made.listen(0)
    return made

end = time.monotonic() + 2
while time.monotonic() < end:
    made = [listener(socket.AF_INET, 20_000 + number) for number in range(300)]
    [one.close() for one in made]
for number in range(600):
    kept.append(listener(socket.AF_INET6, 9_000 + number))
    caller = socket.socket()
    caller.setblocking(False)
    for _ in range(2):
        caller.connect_ex(("127.0.0.1", 9_000 + number))
        kept.append(caller)
        caller = socket.socket()
        caller.setblocking(False)
"""
    + SERVE
)


def test_crowd_of_sockets_that_nobody_answers_harms_neither_its_own_start_nor_others(
    arena: LiveService, neighbour: dict[str, Any]
) -> None:
    with Visitor(arena, neighbour) as visitor:
        data = arena.create("crowd", CROWD, resources=SMALL)
    assert data["status"] == "running"
    assert visitor.failures == []
    assert visitor.answers > 0
    arena.call("DELETE", f"/builders/{data['uuid']}")


def test_app_that_opens_other_ports_alone_and_leaves_callers_waiting_fails_in_its_time(arena: LiveService) -> None:
    """Each look at its ports took a second for each of them, of which two seconds counted."""
    waits = CROWD.replace(SERVE, "\ntime.sleep(10_000)\n")
    answer = arena.call("POST", "/builders", json=body("waits", waits, resources=SMALL, start_timeout=5))
    assert answer.status_code == 422, answer.text
    assert "listens on port 9000" in answer.json()["message"], answer.text
    assert answer.elapsed.total_seconds() < patience(60)
