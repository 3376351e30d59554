"""Launcher: a small single-threaded process that forks where the service cannot.

The service has threads, so it must not fork and continue in Python; a fresh interpreter per step would cost 20 ms.
This server is started once (``python -m …launcher <descriptor of its socket>``), imports the standard library only,
and answers one JSON request per packet:

``maps``    have user namespaces for the idmapped mounts of one sandbox ready before they are needed.
``attach``  connect the network namespace of a process to a bridge, and limit what its user namespace takes of the host.
``claim``   give a prepared sandbox, in which nothing has run yet, its name, folders and files.
``run``     fork; the child enters cgroups, makes mounts in a mount namespace of its own, takes its terminal, and
            executes a program.
            Answers when that program has ended, with its exit status and what went wrong before it.
``join``    start a program in a running sandbox (``join.py``). Answers when it has ended, with its exit status.
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
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from builderd.adapters.engines.oci.network.netlink import LOOPBACK_INDEX, Netlink
from builderd.adapters.engines.oci.runtime.claim import claim
from builderd.adapters.engines.oci.runtime.join import FAILED, IGNORED, join, reap_strays
from builderd.linux.syscalls import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWUSER,
    MS_REC,
    MS_SLAVE,
    bind,
    forbid_tracing,
    mount,
    setns,
    unmount,
    unshare,
)

#: Longest request: a packet of a SOCK_SEQPACKET socket, well below the default send buffer of 208 KiB.
MAX_PACKET = 128 * 1024
MAX_DESCRIPTORS = 8
IDS = 65536
#: inotify limits of one user namespace with its descendants, within those that the kernel counts for the host's root.
INOTIFY = {"max_inotify_instances": 128, "max_inotify_watches": 65536}
UNIFIED = "/sys/fs/cgroup/unified"
#: Pause between looks for children that a killed child left.
STRAYS_SECONDS = 1.0

Message = dict[str, Any]


class Server:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        #: By the sandbox's first uid: namespaces by the id on disk that they show as that uid.
        self._maps: dict[int, dict[int, int]] = {}
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
                reap_strays(self._children)

    def _receive(self) -> bool:
        try:
            packet, descriptors, _, _ = socket.recv_fds(
                self._control, MAX_PACKET, MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:  # the service was killed before it had read all answers
            return False
        if not packet:
            return False
        request = json.loads(packet)
        try:
            self._handle(request, descriptors)
        except OSError as error:
            self._answer(request["id"], error=describe(error))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return True

    def _handle(self, request: Message, descriptors: list[int]) -> None:
        match request["op"]:
            case "maps":
                self._keep_maps(request["uid"], request["owners"])
                self._answer(request["id"])
            case "attach":
                attach(request["pid"], Link(**request["network"]))
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

    def _keep_maps(self, uid: int, owners: list[int]) -> dict[int, int]:
        maps = self._maps.setdefault(uid, {})
        for owner in owners:
            if owner not in maps:
                maps[owner] = user_namespace(owner, uid)
        return maps

    def _drop_maps(self, uid: int) -> None:
        """Close the user namespaces kept for later mounts; mounts made with them keep them alive."""
        for descriptor in self._maps.pop(uid, {}).values():
            os.close(descriptor)

    def _claim(self, request: Message) -> None:
        owners = [bound["owner"] for bound in request["binds"] if bound["owner"] is not None]
        maps = self._keep_maps(request["uid"], owners)
        words, child_words = os.pipe2(os.O_CLOEXEC)
        if (pid := fork_or_close(words, child_words)) == 0:
            try:
                claim(request, maps)
                os._exit(0)
            except BaseException as error:
                os.write(child_words, describe(error).encode()[:4096])
            finally:
                os._exit(FAILED)
        os.close(child_words)
        _, status = os.waitpid(pid, 0)
        self._drop_maps(request["uid"])
        words_of_child = _read_words(words)
        if status:
            raise OSError(0, words_of_child or f"the claim ended with {status}")

    def _run(self, request: Message, descriptors: list[int]) -> None:
        owners = [mount["owner"] for mount in request["mounts"] if mount.get("owner") is not None]
        maps = self._keep_maps(request["uid"], owners) if owners else {}
        words, child_words = os.pipe2(os.O_CLOEXEC)
        pid = fork_or_close(words, child_words)
        if pid == 0:
            run_child(request, maps, descriptors, child_words)
        os.close(child_words)
        self._drop_maps(request["uid"])
        self._watch(pid, partial(self._answer_end, request, words))
        if request["name"]:
            self._named[request["name"]] = pid

    def _watch(self, pid: int, then: Callable[[int], None]) -> None:
        """Call ``then`` with the child's exit code once it has ended."""
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            self._strays = True
            raise
        self._children.add(pid)
        self._selector.register(descriptor, selectors.EVENT_READ, (pid, then))

    def _ended(self, pid: int, then: Callable[[int], None]) -> None:
        self._children.discard(pid)
        _, status = os.waitpid(pid, 0)
        then(os.waitstatus_to_exitcode(status))

    def _join(self, request: Message, descriptors: list[int]) -> None:
        told, tell = os.pipe2(os.O_CLOEXEC)
        pid = fork_or_close(told, tell)
        if pid == 0:
            join(descriptors, tell)
        os.close(tell)
        self._watch(pid, partial(self._joined, request, told))
        self._named[request["name"]] = pid
        self._joining += 1

    def _joined(self, request: Message, told: int, status: int) -> None:
        """Follow the program that a joining child has started beside itself."""
        self._joining -= 1
        if program := int(_read_words(told) or 0):
            self._named[request["name"]] = program
            try:
                self._watch(program, partial(self._answer_end, request, None))
            except OSError as error:
                self._named.pop(request["name"])
                self._answer(request["id"], error=describe(error))
            return
        self._named.pop(request["name"])
        if status < 0:
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

    def _answer_end(self, request: Message, words: int | None, status: int) -> None:
        self._named.pop(request["name"], None)
        self._answer(request["id"], status=status, error="" if words is None else _read_words(words))

    def _answer(self, request: int, **answer: Any) -> None:
        self._control.send(json.dumps({"id": request, **answer}).encode())


def fork_or_close(*descriptors: int) -> int:
    """Fork; close these if the kernel refuses to, as when a limit of processes is met."""
    try:
        return os.fork()
    except OSError:
        for descriptor in descriptors:
            os.close(descriptor)
        raise


def _read_words(descriptor: int) -> str:
    """Return what a child wrote: the error before it failed, empty when it executed its program."""
    os.set_blocking(descriptor, False)
    try:
        return os.read(descriptor, 4096).decode(errors="replace")
    except BlockingIOError:
        return ""
    finally:
        os.close(descriptor)


def run_child(request: Message, maps: dict[int, int], descriptors: list[int], words: int) -> None:
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
        os.write(words, describe(error).encode()[:4096])
    finally:
        os._exit(FAILED)


def prepare_mounts(mounts: list[Message], maps: dict[int, int]) -> None:
    """Make mounts in a mount namespace of their own; they vanish with the last process in it."""
    if mounts:
        unshare(CLONE_NEWNS)
    for wanted in mounts:
        make_mount(wanted, maps)


def make_mount(wanted: Message, maps: dict[int, int]) -> None:
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


def user_namespace(inside: int, outside: int) -> int:
    """Return the descriptor of a user namespace that maps 65,536 ids from ``inside`` to ``outside``."""
    ready, child_ready = os.pipe2(os.O_CLOEXEC)
    child_done, done = os.pipe2(os.O_CLOEXEC)
    pid = fork_or_close(ready, child_ready, child_done, done)
    if pid == 0:
        try:
            unshare(CLONE_NEWUSER)
            os.write(child_ready, b"r")
            os.close(done)
            os.read(child_done, 1)
        finally:
            os._exit(0)
    try:
        os.close(child_ready)
        os.close(child_done)
        if not os.read(ready, 1):
            raise OSError(0, "the kernel gives no user namespace (see user.max_user_namespaces)")
        for kind in ("uid_map", "gid_map"):
            write(f"/proc/{pid}/{kind}", f"{inside} {outside} {IDS}")
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready)
        os.close(done)
        os.waitpid(pid, 0)


class Link(NamedTuple):
    """Link of a sandbox as ``Network.link`` describes it; ``mac`` in hexadecimal."""

    link: str
    bridge: str
    mac: str
    ip: str
    gateway: str
    mtu: int


def attach(pid: int, network: Link) -> None:
    """Give the network namespace of a process one link to the bridge, whose port is isolated from all others."""
    # The first may be gone.
    inside, home = (os.open(f"/proc/{who}/ns/net", os.O_RDONLY | os.O_CLOEXEC) for who in (pid, "self"))
    try:
        limits = limit(pid)
        try:
            connect(network, home, inside)
        finally:
            _, status = os.waitpid(limits, 0)
    finally:
        os.close(home)
        os.close(inside)
    if status:
        raise OSError(0, "the user namespace cannot be limited (see /proc/sys/user)")


def connect(network: Link, home: int, inside: int) -> None:
    """Make the link between two network namespaces, this process's own and that of a sandbox."""
    bridge_index = socket.if_nametoindex(network.bridge)
    with Netlink() as outside:
        outside.delete_link(network.link)
        outside.create_veth(network.link, bridge_index, "eth0", bytes.fromhex(network.mac), inside, network.mtu)
        port = socket.if_nametoindex(network.link)
        outside.isolate_port(port)
        outside.set_up(port)
    setns(inside, CLONE_NEWNET)
    try:
        configure_inside(network.ip, network.gateway)
    finally:
        setns(home, CLONE_NEWNET)


def limit(pid: int) -> int:
    """Limit the user namespace of a process; return the pid of the child that does it and cannot leave it."""
    if (child := os.fork()) == 0:
        try:
            setns(os.open(f"/proc/{pid}/ns/user", os.O_RDONLY), CLONE_NEWUSER)
            for name, most in INOTIFY.items():
                write(f"/proc/sys/user/{name}", str(most))
            os._exit(0)
        finally:
            os._exit(1)
    return child


def configure_inside(ip: str, gateway: str) -> None:
    """Set up the network namespace that this process is in, with the gateway as its only neighbour: docs/adr/0049."""
    write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")
    for link in ("all", "eth0"):
        write(f"/proc/sys/net/ipv4/conf/{link}/accept_redirects", "0")
    if os.path.exists("/proc/sys/net/ipv6"):  # noqa: PTH110
        write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1")
    with Netlink() as netlink:
        index = socket.if_nametoindex("eth0")
        netlink.set_up(LOOPBACK_INDEX)
        netlink.add_address(index, ip, 32)
        netlink.set_up(index)
        netlink.add_link_route(gateway, index)
        netlink.add_default_route(gateway, index)
        netlink.add_fallback_route(index)


def write(path: str, text: str) -> None:
    with open(path, "w") as file:  # noqa: PTH123
        file.write(text)


def describe(error: BaseException) -> str:
    if isinstance(error, OSError):
        return f"{error.filename or error.strerror}: {error.strerror}"
    return f"{type(error).__name__}: {error}"


def main() -> None:
    """Serve on the descriptor named by the first argument."""
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
