"""Run by a test as a process of its own: confines itself as the review's worker does, and tries to get out.

Prints, as JSON, what each attempt came to.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from builderd.review.scanners.tripwire.worker import make_limits
from builderd.sandboxing import confinement
from builderd.sandboxing.privileges import lock_down

LIBC = ctypes.CDLL(None, use_errno=True)
SECRET = sys.argv[1]
PR_SET_PDEATHSIG, PR_GET_PDEATHSIG, PR_SET_NAME = 1, 2, 15
SYS_PRCTL = {"x86_64": 157, "aarch64": 167}[platform.machine()]
MEMORY, CPU = 300_000_000, 5
CLONE_NEWUSER, PTRACE_ATTACH, SYS_IO_URING_SETUP = 0x1000_0000, 16, 425


def outcome(attempt: Callable[[], object]) -> object:
    try:
        return attempt()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    except MemoryError:
        return "MemoryError"


def call(result: int) -> object:
    return errno.errorcode[ctypes.get_errno()] if result < 0 else result


def forks() -> object:
    children = []
    try:
        for _ in range(500):
            pid = os.fork()
            if pid == 0:
                signal.pause()
            children.append(pid)
    except BlockingIOError:
        return "EAGAIN"
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return len(children)


def capabilities() -> object:
    data = (ctypes.c_uint32 * 6)()
    LIBC.capget((ctypes.c_uint32 * 2)(0x2008_0522, 0), data)
    return sum(data)


def signal_at_parents_end() -> int:
    number = ctypes.c_int()
    LIBC.prctl(PR_GET_PDEATHSIG, ctypes.byref(number), 0, 0, 0)
    return number.value


def environment_of_a_program() -> object:
    done = subprocess.run(["/usr/bin/env"], capture_output=True, text=True, env={}, check=True)
    return done.stdout


def attempts() -> dict[str, object]:
    return {
        "uid": os.getuid(),
        "pid": os.getpid(),
        "capabilities": capabilities(),
        "root": sorted(path.name for path in Path("/").iterdir()),
        "a secret of the host": outcome(lambda: Path(SECRET).read_text()),
        "users": outcome(lambda: Path("/etc/passwd").read_text()),
        "processes": outcome(lambda: list(Path("/proc").iterdir())),
        "a socket": outcome(socket.socket),
        "a unix socket": outcome(lambda: socket.socket(socket.AF_UNIX)),
        "writing a program": outcome(lambda: Path("/usr/bin/x").write_text("")),
        "writing the root": outcome(lambda: Path("/x").write_text("")),
        "a namespace": call(LIBC.unshare(CLONE_NEWUSER)),
        "a mount": call(LIBC.mount(b"tmpfs", b"/work", b"tmpfs", 0, None)),
        "outliving its parent": call(LIBC.prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0)),
        "outliving its parent, by a number that is cut": call(
            LIBC.syscall(SYS_PRCTL, ctypes.c_uint64(1 << 32 | PR_SET_PDEATHSIG), 0, 0, 0, 0)
        ),
        "the signal at its parent's end": signal_at_parents_end(),
        "a name": call(LIBC.prctl(PR_SET_NAME, b"review", 0, 0, 0)),
        "tracing": call(LIBC.ptrace(PTRACE_ATTACH, 1, 0, 0)),
        "io_uring": call(LIBC.syscall(SYS_IO_URING_SETUP, 1, 0)),
        "killing the parent": outcome(lambda: os.kill(os.getppid() or 2, signal.SIGKILL)),
        "much memory": outcome(lambda: len(bytearray(2 * MEMORY))),
        "a large file": outcome(lambda: Path("/work/x").write_bytes(b"x" * (confinement.WORK_BYTES + 1))),
        "many processes": forks(),
        "a program": environment_of_a_program(),
    }


def main() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    proc = confinement.confine([])
    confinement.new_job(proc)
    os.close(proc)
    pid = os.fork()
    if pid == 0:
        lock_down(make_limits(MEMORY, CPU))
        sys.stdout.write(json.dumps(attempts()))
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
