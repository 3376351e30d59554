"""Launcher: a small single-threaded process that starts programs where the service cannot fork.

The service has threads, so it must not fork and continue in Python; a fresh interpreter per step would cost 20 ms.
This server is started once (``python -m …launcher <descriptor of its socket>``), imports the standard library only,
and answers one JSON request per packet (``requests.py``); of a damaged one it does nothing and answers with an error:

``attach``  connect the network namespace of a process to a bridge, and limit what its user namespace takes of the host.
``claim``   give a prepared sandbox, in which nothing has run yet, its name, folders and files.
``run``     start a child (``start.c``, else a fork) that enters cgroups, makes mounts in a mount namespace of its own,
            takes its terminal, and executes a program.
            Answers when that program has ended, with its exit status and what went wrong before it.
``join``    start a program in a running sandbox (``join.c``). Answers when it has ended, with its exit status; or at
            once with ``no_joiner``, why ``join.c`` cannot be executed.
``kill``    kill the program of this name and what it started in its session.

It lives in a mount namespace that receives mounts of the host and gives none, without the unified cgroup tree on a
hybrid host (crun refuses to work beside it), and with the runtime on a read-only mount. It ends with
the service; nothing that it started ends with it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import json
import os
import selectors
import signal
import socket
import sys
import termios
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from builderd.adapters.engines.oci.runtime.attach import Link, attach
from builderd.adapters.engines.oci.runtime.claim import claim
from builderd.adapters.engines.oci.runtime.join import (
    FAILED,
    IGNORED,
    NoJoiner,
    reap_strays,
    start_joining,
    usable,
)
from builderd.adapters.engines.oci.runtime.namespaces import (
    closed_on_error,
    fork_or_close,
    open_pipes,
    user_namespaces,
    write,
)
from builderd.adapters.engines.oci.runtime.requests import (
    MAX_DESCRIPTORS,
    MAX_PACKET,
    Message,
    parse,
    request_number,
)
from builderd.adapters.engines.oci.runtime.start import Helper, fault_of, log_event
from builderd.linux.syscalls import (
    CLONE_NEWNS,
    MOUNT_ATTR_RDONLY,
    MS_REC,
    MS_SLAVE,
    bind,
    forbid_tracing,
    mount,
    unmount,
    unshare,
)

UNIFIED = "/sys/fs/cgroup/unified"
#: Pause between looks for children that a killed child left.
STRAYS_SECONDS = 1.0
#: Longest error of an answer: it may hold a path of the request.
MAX_ERROR = 4096


class Server:
    """``joiner`` is the compiled program of ``join.c`` and ``start.c``; without it, programs are started by a fork."""

    def __init__(self, control: socket.socket, joiner: str = "") -> None:
        self._control = control
        self._helper = Helper(joiner)
        #: Those that have a name, for as long as they run.
        self._named: dict[str, int] = {}
        self._children: set[int] = set()
        #: Joining children: what they have started may end before it is known here, and is then no stray.
        self._joining = 0
        #: True once there may be children that nobody watches, such as what a killed joining child had started.
        self._strays = False
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)

    def serve(self) -> None:
        """Answer requests until the service closes its end."""
        while True:
            for key, _ in self._selector.select(STRAYS_SECONDS if self._strays else None):
                if key.fileobj is not self._control:
                    self._selector.unregister(key.fd)
                    os.close(key.fd)
                    self._ended(*key.data)
                elif not self._receive():
                    return
            if self._strays and not self._joining:
                self._strays = reap_strays(self._children)

    def _receive(self) -> bool:
        try:
            packet, descriptors, flags, _ = socket.recv_fds(
                self._control, MAX_PACKET, MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:  # the service was killed before it had read all answers
            return False
        if not packet:
            return False
        for descriptor in descriptors:  # recv_fds of Python 3.13 passes no flags on
            os.set_inheritable(descriptor, False)
        try:
            self._handle(parse(packet, flags, len(descriptors)), descriptors)
        except Exception as error:  # of this request; what others have started depends on this process
            self._answer(request_number(packet), error=describe(error))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return True

    def _handle(self, request: Message, descriptors: list[int]) -> None:
        match request["op"]:
            case "attach":
                attach(request["pid"], Link(**request["network"]), self._helper)
                self._answer(request["id"])
            case "claim":
                self._claim(request)
                self._answer(request["id"])
            case "run":
                self._run(request, descriptors)
            case "join":
                self._join(request, descriptors)
            case "kill":
                self._kill(request["name"])
                self._answer(request["id"])

    def _claim(self, request: Message) -> None:
        with user_namespaces(request["uid"], owners_of(request["binds"])) as maps:
            words, child_words = open_pipes(1)
            if (pid := fork_or_close(words, child_words)) == 0:
                try:
                    claim(request, maps)
                    os._exit(0)
                except BaseException as error:
                    os.write(child_words, describe(error).encode(errors="replace")[:MAX_ERROR])
                finally:
                    os._exit(FAILED)
        os.close(child_words)
        _, status = os.waitpid(pid, 0)
        words_of_child = _read_words(words)
        if status:
            raise OSError(0, words_of_child or f"the claim ended with {status}")

    def _run(self, request: Message, descriptors: list[int]) -> None:
        with user_namespaces(request["uid"], owners_of(request["mounts"])) as maps:
            words, child_words = open_pipes(1)
            with closed_on_error(words, child_words):
                started = self._helper.start(request, maps, descriptors, child_words)
            pid = fork_or_close(words, child_words) if started is None else started
            if pid == 0:
                run_child(request, maps, descriptors, child_words)
        os.close(child_words)
        self._watch(pid, partial(self._answer_end, request, pid, words), words)
        if request["name"]:
            self._named[request["name"]] = pid

    def _watch(self, pid: int, then: Callable[[int], None], *answers: int) -> None:
        """Call ``then`` with the child's exit code once it has ended.

        When the kernel refuses, nobody is going to tell of the child: kill it, and close the ``answers`` it writes to.
        """
        with contextlib.ExitStack() as opened:
            for answer in answers:
                opened.callback(os.close, answer)
            try:
                descriptor = os.pidfd_open(pid)
                opened.callback(os.close, descriptor)
                self._selector.register(descriptor, selectors.EVENT_READ, (pid, then))
            except OSError as error:
                self._give_up(pid, error)
                raise
            opened.pop_all()
        self._children.add(pid)

    def _give_up(self, pid: int, error: OSError) -> None:
        """Kill a child that cannot be watched, unless there is no such process; a later look reaps it."""
        self._strays = True
        if error.errno != errno.ESRCH:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _ended(self, pid: int, then: Callable[[int], None]) -> None:
        self._children.discard(pid)
        _, status = os.waitpid(pid, 0)
        then(os.waitstatus_to_exitcode(status))

    def _join(self, request: Message, descriptors: list[int]) -> None:
        told, tell = open_pipes(1)
        try:
            pid = start_joining(self._helper.path, descriptors, told, tell)
        except NoJoiner as error:
            self._answer(request["id"], no_joiner=str(error.strerror))
            return
        os.close(tell)
        self._watch(pid, partial(self._joined, request, pid, told), told)
        self._named[request["name"]] = pid
        self._joining += 1

    def _joined(self, request: Message, pid: int, told: int, status: int) -> None:
        """Follow the program that a joining child has started beside itself."""
        self._joining -= 1
        self._forget(request["name"], pid)
        if program := int(_read_words(told) or 0):
            try:
                self._watch(program, partial(self._answer_end, request, program, None))
            except OSError as error:
                self._answer(request["id"], error=describe(error))
            else:
                self._named[request["name"]] = program
        elif status < 0:
            self._strays = True
            self._answer(request["id"], error="the joining process was killed")
        else:
            self._answer(request["id"], status=FAILED)

    def _kill(self, name: str) -> None:
        """Kill a program and its group. An unreaped child keeps its pid; a just forked one leads no group yet."""
        if pid := self._named.get(name):
            for kill in (os.kill, os.killpg):
                with contextlib.suppress(ProcessLookupError):
                    kill(pid, signal.SIGKILL)

    def _forget(self, name: str, pid: int) -> None:
        """Let go of a name, unless a later program has it by now."""
        if self._named.get(name) == pid:
            self._named.pop(name)

    def _answer_end(self, request: Message, pid: int, words: int | None, status: int) -> None:
        self._forget(request["name"], pid)
        self._answer(request["id"], status=status, error="" if words is None else fault_of(_read_words(words)))

    def _answer(self, request: int, **answer: Any) -> None:
        with contextlib.suppress(
            BrokenPipeError, ConnectionResetError
        ):  # the service is gone: the next receipt says so
            self._control.send(json.dumps({"id": request, **answer}).encode())


def owners_of(mounts: list[Message]) -> list[int]:
    """Return the owners on disk that idmapped ones of these mounts show as the sandbox's root."""
    return [mount["owner"] for mount in mounts if mount.get("owner") is not None]


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
        prepare_mounts(request["mounts"], maps)
        os.chdir(request["cwd"])
        place_descriptors(request["fds"], descriptors)
        if request["terminal"]:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        os.execve(request["argv"][0], request["argv"], request["env"])  # noqa: S606
    except BaseException as error:
        os.write(words, describe(error).encode(errors="replace")[:MAX_ERROR])
    finally:
        os._exit(FAILED)


def prepare_mounts(mounts: list[Message], maps: Mapping[int, int]) -> None:
    """Make mounts in a mount namespace of their own; they vanish with the last process in it."""
    if mounts:
        unshare(CLONE_NEWNS)
    for wanted in mounts:
        make_mount(wanted, maps)


def make_mount(wanted: Message, maps: Mapping[int, int]) -> None:
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


def mount_read_only(program: str) -> None:
    """Mount a program read-only over itself. Where that fails, crun does so itself at each of its commands."""
    try:
        bind(program, program, MOUNT_ATTR_RDONLY)
    except OSError as error:
        log_event(f"program not mounted read-only, its commands take longer program={program} error={describe(error)}")


def main() -> None:
    """Serve on the descriptor named by the first argument; the second is the compiled program, or empty.

    The others are programs that nothing started from here on can write to.
    """
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, *IGNORED}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    unshare(CLONE_NEWNS)
    mount("none", "/", None, MS_REC | MS_SLAVE)
    if os.path.ismount(UNIFIED):
        unmount(UNIFIED)
    for program in sys.argv[3:]:
        mount_read_only(program)
    # Its children enter sandboxes, and must not be open to them before they execute their program.
    forbid_tracing()
    gc.freeze()
    Server(control, usable(sys.argv[2])).serve()


if __name__ == "__main__":
    main()
