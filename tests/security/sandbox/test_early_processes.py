"""An app stops the processes of commands before they have executed anything, and reaches through them for the host."""

from __future__ import annotations

import base64
import json
import time

import pytest
from tests.security.sandbox.conftest import Attacker

pytestmark = pytest.mark.root

#: Stops each process as soon as it has the app's user, since the next pids are known; a stopped one whose program is
#: the host's own has not begun yet. Then tries all that would show or change the host.
ATTACK = r"""
import ctypes, json, os, signal, time
libc = ctypes.CDLL(None, use_errno=True)
report, until = [], time.monotonic() + 40

def read(path):
    with open(path, "rb") as file:
        return file.read()

def call(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "refused")

def attempts(pid):
    at = f"/proc/{pid}/"
    for name in ("exe", "cwd", "root", "ns/mnt", "fd/0", "fd/3"):
        yield f"link {name}", os.readlink, (at + name,)
    for name in ("environ", "maps", "auxv", "stack", "io", "syscall", "smaps"):
        yield f"read {name}", read, (at + name,)
    for name in ("exe", "mem"):
        for flags in (os.O_RDONLY, os.O_RDWR):
            yield f"open {name} {flags}", os.open, (at + name, flags)
    for name in ("fd", "map_files", "fdinfo", "cwd", "root"):
        yield f"list {name}", os.listdir, (at + name,)
    for number in range(16):
        yield f"descriptor {number}", call, (PIDFD_GETFD, os.pidfd_open(pid), number, 0)
    for request in (ATTACH, SEIZE):
        yield f"trace {request}", call, (PTRACE, request, pid, 0, 0)
    place = (ctypes.c_size_t * 2)(ctypes.addressof(ctypes.create_string_buffer(8)), 8)
    for number in (READV, WRITEV):
        yield f"copy {number}", call, (number, pid, place, 1, place, 1, 0)

PIDFD_GETFD, PTRACE, ATTACH, SEIZE, READV, WRITEV = 438, 101, 16, 0x4206, 310, 311

def succeeded(pid):
    for name, attempt, arguments in attempts(pid):
        try:
            attempt(*arguments)
            yield name
        except OSError:
            pass
    for name, column in (("mountinfo", 4), ("net/dev", 0)):
        own, seen = (
            sorted(line.split()[column] for line in read(f"/proc/{who}/{name}").splitlines()[2:])
            for who in ("self", pid)
        )
        if own != seen:
            yield f"foreign {name}"

def stop(pid):
    os.kill(pid, signal.SIGSTOP)
    while read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[0] not in (b"T", b"Z"):
        pass

last = os.getpid()
while len(report) < 20 and time.monotonic() < until:
    for pid in range(last + 1, last + 4):
        try:
            stop(pid)
            last = pid
            line = read(f"/proc/{pid}/cmdline")
            # On Incus perl runs ``begin`` with the app's own confinement, out of the guest's own files.
            if b"builderd" in line and not line.startswith(b"/usr/bin/perl"):
                report.append(list(succeeded(pid)))
        except OSError:
            continue
        finally:
            try:
                os.kill(pid, signal.SIGCONT)
            except OSError:
                pass
    last = max([last, *(pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if pid > last + 3)])
with open("/app/.report", "w") as file:
    json.dump(report, file)
os.rename("/app/.report", "/app/report")
"""


# Under gVisor the app sees none of the host's processes.
@pytest.mark.parametrize("attacker", ["standard"], indirect=True)
def test_a_command_that_has_not_begun_shows_nothing_of_the_host(attacker: Attacker) -> None:
    program = base64.b64encode(ATTACK.encode()).decode()
    command = f"echo {program} | base64 -d >attack.py; nohup python3 attack.py >said 2>&1 & sleep 1"
    assert attacker.run(command)[0] == 0
    deadline = time.monotonic() + 60
    code = 1
    while code and time.monotonic() < deadline:
        code, output = attacker.run("test -e report && cat report")
    assert code == 0, attacker.run("cat said")
    caught = json.loads(output)
    assert len(caught) >= 5, "the attack came too late each time, so it proves nothing"
    assert [one for one in caught if one] == []
