"""Launcher: a small single-threaded process that starts programs where the service cannot fork.

The service has threads, so it must not fork and continue in Python; a fresh interpreter per step would cost 20 ms.
This server is started once (``python -m …launcher <descriptor of its socket>``), imports the standard library only,
and answers one JSON request per packet, a failed one with an error:

``attach``  connect the network namespace of a process to a bridge, and limit what its user namespace takes of the host.
``run``     fork a child that enters cgroups, makes mounts in a mount namespace of its own, takes its terminal, and
            executes a program. Answers when that program has ended, with its exit status and what went wrong before it.
``kill``    kill the program of this name and what it started in its session.

It lives in a mount namespace that receives mounts of the host and gives none, without the unified cgroup tree on a
hybrid host (crun refuses to work beside it). It ends with the service; nothing that it started ends with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import os
import selectors
import signal
import socket
import sys
import termios
from collections.abc import Mapping
from typing import Any

from builderd.adapters.engines.oci.runtime.attach import Link, attach, user_namespaces, write
from builderd.linux.syscalls import CLONE_NEWNS, MS_REC, MS_SLAVE, bind, forbid_tracing, mount, unmount, unshare

UNIFIED = "/sys/fs/cgroup/unified"
#: Exit status of a child that failed before it could execute its program.
FAILED = 127
#: Signals that Python ignores; the launcher has the defaults of all others.
IGNORED = (signal.SIGPIPE, signal.SIGXFSZ)
#: Longest error of an answer, which may name a path of the request.
MAX_ERROR = 4096
#: Longest request: a packet of a SOCK_SEQPACKET socket, well below the default send buffer of 208 KiB.
MAX_PACKET = 128 * 1024
MAX_DESCRIPTORS = 8

Message = dict[str, Any]


class Server:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        #: Those that have a name, for as long as they run.
        self._named: dict[str, int] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)

    def serve(self) -> None:
        """Answer requests until the service closes its end."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is not self._control:
                    self._selector.unregister(key.fd)
                    os.close(key.fd)
                    self._ended(*key.data)
                elif not self._receive():
                    return

    def _receive(self) -> bool:
        try:
            packet, descriptors, _, _ = socket.recv_fds(
                self._control, MAX_PACKET, MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:  # the service was killed before it had read all answers
            return False
        if not packet:
            return False
        for descriptor in descriptors:  # recv_fds of Python 3.13 passes no flags on
            os.set_inheritable(descriptor, False)
        request = json.loads(packet)
        try:
            self._handle(request, descriptors)
        except Exception as error:  # of this request; what others have started depends on this process
            self._answer(request["id"], error=describe(error))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return True

    def _handle(self, request: Message, descriptors: list[int]) -> None:
        match request["op"]:
            case "attach":
                attach(request["pid"], Link(**request["network"]))
                self._answer(request["id"])
            case "run":
                self._run(request, descriptors)
            case "kill":
                self._kill(request["name"])
                self._answer(request["id"])

    def _run(self, request: Message, descriptors: list[int]) -> None:
        # Idmapped mounts show these owners on disk as the sandbox's root.
        owners = [mount["owner"] for mount in request["mounts"] if mount.get("owner") is not None]
        words, child_words = os.pipe2(os.O_CLOEXEC)
        try:
            with user_namespaces(request["uid"], owners) as maps:
                if (pid := os.fork()) == 0:
                    run_child(request, maps, descriptors, child_words)
            self._watch(request, pid, words)
        except BaseException:
            os.close(words)
            raise
        finally:
            os.close(child_words)
        if request["name"]:
            self._named[request["name"]] = pid

    def _watch(self, request: Message, pid: int, words: int) -> None:
        """Answer the request once its child has ended. A child that the kernel lets nobody watch is killed."""
        try:
            self._selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (request, pid, words))
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise

    def _ended(self, request: Message, pid: int, words: int) -> None:
        _, status = os.waitpid(pid, 0)
        # A later program may have the name by now.
        if self._named.get(request["name"]) == pid:
            self._named.pop(request["name"])
        self._answer(request["id"], status=os.waitstatus_to_exitcode(status), error=_read_words(words))

    def _kill(self, name: str) -> None:
        """Kill a program and its group. An unreaped child keeps its pid; a just forked one leads no group yet."""
        if pid := self._named.get(name):
            for kill in (os.kill, os.killpg):
                with contextlib.suppress(ProcessLookupError):
                    kill(pid, signal.SIGKILL)

    def _answer(self, request: int, **answer: Any) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the next receipt ends the server
            self._control.send(json.dumps({"id": request, **answer}).encode())


def _read_words(descriptor: int) -> str:
    """Return what a child wrote: the error before it failed, empty when it executed its program."""
    os.set_blocking(descriptor, False)
    try:
        return os.read(descriptor, MAX_ERROR).decode(errors="replace")
    except BlockingIOError:
        return ""
    finally:
        os.close(descriptor)


def run_child(request: Message, maps: Mapping[int, int], descriptors: list[int], words: int) -> None:
    """Become the program of a ``run`` request. Never returns."""
    try:
        os.setsid()
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        for tasks in request["cgroups"]:
            write(tasks, "0")
        if request["oom_score"]:
            write("/proc/self/oom_score_adj", str(request["oom_score"]))
        os.chdir(request["cwd"])
        if request["mounts"]:
            unshare(CLONE_NEWNS)
        for wanted in request["mounts"]:
            make_mount(wanted, maps)
        place_descriptors(request["fds"], descriptors)
        if request["terminal"]:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        os.execve(request["argv"][0], request["argv"], request["env"])  # noqa: S606
    except BaseException as error:
        os.write(words, describe(error).encode(errors="replace")[:MAX_ERROR])
    finally:
        os._exit(FAILED)


def make_mount(wanted: Message, maps: Mapping[int, int]) -> None:
    """Make a mount, which vanishes with the last process of its mount namespace."""
    match wanted["kind"]:
        case "bind":
            owner = wanted["owner"]
            namespace = None if owner is None else maps[owner]
            bind(wanted["source"], wanted["target"], wanted["attributes"], namespace)
        case "detach":
            unmount(wanted["target"])
        case kind:
            mount(kind, wanted["target"], kind, wanted.get("flags", 0), wanted.get("data", ""))


def place_descriptors(numbers: list[int], descriptors: list[int]) -> None:
    """Give the program each descriptor under its number, and /dev/null for standard streams that are not among them.

    All go out of the way first and then into place, so that none overwrites another.
    """
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    wanted = {0: null, 1: null, 2: null} | dict(zip(numbers, descriptors, strict=True))
    aside = {number: fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 64) for number, descriptor in wanted.items()}
    for number, descriptor in aside.items():
        os.dup2(descriptor, number)


def describe(error: BaseException) -> str:
    if isinstance(error, OSError):
        return f"{error.filename or error.strerror}: {error.strerror}"[-MAX_ERROR:]
    return f"{type(error).__name__}: {error}"[:MAX_ERROR]


def main() -> None:
    """Serve on the descriptor that the argument names."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, *IGNORED}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    unshare(CLONE_NEWNS)
    mount("none", "/", None, MS_REC | MS_SLAVE)
    if os.path.ismount(UNIFIED):
        unmount(UNIFIED)
    # Its children enter sandboxes, and must not be open to them before they execute their program.
    forbid_tracing()
    gc.freeze()
    Server(control).serve()


if __name__ == "__main__":
    main()
