"""Joining a running sandbox with one more program: run by a child of the launcher. Standard library only.

The order is what makes it safe, and that of ``crun exec``: docs/adr/0285. A process that the sandbox can see is in all
of its namespaces, cannot be traced from there, and has no descriptor of the host but pipes and, at first, the lists of
the sandbox's own control groups.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

from builderd.linux.syscalls import (
    ALL_NAMESPACES,
    check,
    clone_beside,
    drop_capabilities,
    forbid_new_privileges,
    forbid_tracing,
    libc,
    limit_capabilities,
    setns,
)

#: Numbers of seccomp(2): arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
SYS_SECCOMP = {"x86_64": 317, "aarch64": 277}
#: Descriptors of a request, in this order: the program's three streams, its report, its document.
STREAMS = 3
#: Byte of the report just before the program is executed; what follows it, or comes in its place, is a fault.
READY = b"+"
#: Exit status of a child that failed before it could execute its program.
FAILED = 127
#: Signals that Python ignores; the launcher has the defaults of all others.
IGNORED = (signal.SIGPIPE, signal.SIGXFSZ)
_SET_MODE_FILTER, _FLAG_SPEC_ALLOW = 1, 4


class Fault(Exception):
    """A fault with a kind that the service tells from others: ``ended`` or ``folder``."""


class Prepared(NamedTuple):
    """All that is read from the host before the sandbox is joined. ``groups`` are open ``cgroup.procs`` files."""

    request: dict[str, Any]
    report: int
    target: int
    groups: Sequence[int]
    rules: ctypes.Array[ctypes.c_char]


def join(descriptors: Sequence[int], answer: int) -> NoReturn:
    """Start the program of a document in a sandbox, write its pid to ``answer``, and end.

    The program becomes a child of this process's parent, with the sandbox's first process as the parent it sees.
    Errors go to the report: a kind, a space and a text.
    """
    report = descriptors[STREAMS]
    try:
        prepared = prepare(descriptors, answer)
        enter(prepared.target)
        if pid := clone_beside():
            os.write(answer, str(pid).encode())
            os._exit(0)
        os.close(answer)
        report = prepared.report
        become(prepared)
    except BaseException as error:
        os.write(report, describe(error))
    finally:
        os._exit(FAILED)


def prepare(descriptors: Sequence[int], answer: int) -> Prepared:
    """Read the host's files, take the streams and what a program inherits, and close everything else."""
    forbid_tracing()
    request = json.loads(_read(descriptors[STREAMS + 1]))
    try:
        target = os.pidfd_open(request["pid"])
        groups = [os.open(path, os.O_WRONLY | os.O_CLOEXEC) for path in request["groups"]]
    except (ProcessLookupError, FileNotFoundError) as error:
        raise Fault("ended") from error
    # Behind the pidfd: from now on the pid cannot become another process's without the join failing.
    if _started(request["pid"]) != request["started"]:
        raise Fault("ended")
    rules = _read(os.open(request["filter"], os.O_RDONLY | os.O_CLOEXEC))
    if not rules or len(rules) % 8:
        raise ValueError(f"{request['filter']} holds no filter")
    os.write(os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC), str(request["oom_score"]).encode())
    for limit, value in ((resource.RLIMIT_NOFILE, request["files"]), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(limit, (value, value))
    for one in IGNORED:
        signal.signal(one, signal.SIG_DFL)
    for number, stream in enumerate(descriptors[:STREAMS]):
        os.dup2(stream, number)
    report = descriptors[STREAMS]
    os.set_inheritable(report, False)
    _close_all_but({report, answer, target, *groups})
    return Prepared(request, report, target, groups, ctypes.create_string_buffer(rules, len(rules)))


def enter(target: int) -> None:
    """Enter all namespaces of the process behind a pidfd; its pid namespace holds for children.

    Nothing may be imported from now on: the path to the modules would lead to files of the sandbox.
    """
    sys.path.clear()
    sys.meta_path.clear()
    try:
        setns(target, ALL_NAMESPACES)
    except ProcessLookupError as error:
        raise Fault("ended") from error
    os.close(target)


def become(prepared: Prepared) -> NoReturn:
    """Enter the groups, give up all rights, and execute the program."""
    request = prepared.request
    for group in prepared.groups:
        os.write(group, b"0")
        os.close(group)
    os.setsid()
    os.umask(0o022)
    os.setgroups([])
    limit_capabilities()
    user = request["user"]
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    drop_capabilities()
    try:
        os.chdir(request["cwd"])
    except OSError as error:
        raise Fault("folder") from error
    forbid_new_privileges()
    # To a pipe that nobody reads any more, this ends the process: a command that was given up never begins.
    os.write(prepared.report, READY)
    _filter(prepared.rules)
    os.execve(request["argv"][0], request["argv"], request["env"])  # noqa: S606


def _filter(rules: ctypes.Array[ctypes.c_char]) -> None:
    """Let the kernel refuse system calls by these rules, with the flags that crun gives."""
    header = struct.pack("HxxxxxxP", len(rules) // 8, ctypes.addressof(rules))
    number = SYS_SECCOMP[platform.machine()]
    check(libc.syscall(number, _SET_MODE_FILTER, _FLAG_SPEC_ALLOW, header), "filter system calls")


def _started(pid: int) -> int:
    """Return the start time of a process in clock ticks (proc(5)), 0 when it is gone."""
    try:
        stat = os.read(os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC), 4096)
        return int(stat.rpartition(b")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _read(descriptor: int) -> bytes:
    """Return the content of a file. Descriptors are closed all together; Python's own files would take longer."""
    content = b""
    while piece := os.read(descriptor, os.fstat(descriptor).st_size - len(content)):
        content += piece
    return content


def _close_all_but(kept: set[int]) -> None:
    start = STREAMS
    for number in sorted(kept):
        os.closerange(start, number)
        start = number + 1
    os.closerange(start, 1 << 30)


def describe(error: BaseException) -> bytes:
    """Return the report of an error: its kind, and what went wrong."""
    kind = error.args[0] if isinstance(error, Fault) else "failed"
    cause = error.__cause__ or error
    return f"{kind} {cause.strerror if isinstance(cause, OSError) else cause}".encode()[:4096]


def reap_strays(known: set[int]) -> None:
    """Reap ended children that nobody watches: they would keep the end of their sandbox waiting."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and ended.si_pid not in known:
            os.waitpid(ended.si_pid, 0)
