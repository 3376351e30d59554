"""Launcher: a small single-threaded process that starts programs where the service cannot fork.

The service has threads, so it must not fork and continue in Python; a fresh interpreter per step would cost 20 ms.
This server is started once (``python -m …launcher <descriptor of its socket>``), imports the standard library only,
and answers one JSON request per packet, a failed one with an error:

``run``     fork a child that enters cgroups, makes mounts in a mount namespace of its own, takes its terminal, and
            executes a program. For a sandbox, make its user and network namespaces first, and connect the latter to a
            bridge meanwhile. Answers when that program has ended, with its exit status and what went wrong before it.
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
import subprocess
import sys
import termios
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from builderd.engine.oci.network.iproute import begin_nft, loopback_rules, run_ip
from builderd.linux.syscalls import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWUSER,
    MOUNT_ATTR_RDONLY,
    MS_REC,
    MS_SLAVE,
    bind,
    forbid_tracing,
    mount,
    setns,
    unmount,
    unshare,
)

UNIFIED = "/sys/fs/cgroup/unified"
CRUN = "/usr/bin/crun"
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
        #: Loads of rules into sandboxes, until they have ended.
        self._loads: list[subprocess.Popen[str]] = []
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
            link = Link(**request["network"]) if request["network"] else None
            with contextlib.ExitStack() as opened:
                own = fork_into(opened, with_network=True) if link else 0
                # The sandbox's own namespace maps what root has on disk.
                others = [owner for owner in owners if owner or not link]
                maps = opened.enter_context(user_namespaces(request["uid"], others))
                namespaces: dict[str, int] = {}
                if link:
                    namespaces = {
                        "user": open_mapped(own, 0, request["uid"], opened),
                        "net": open_namespace(own, "net", opened),
                    }
                    maps = {0: namespaces["user"], **maps}
                if (pid := os.fork()) == 0:
                    run_child(request, maps, namespaces, descriptors, child_words)
                self._watch(request, pid, words)
                if link:  # while the program begins
                    try:
                        self._loads = [load for load in self._loads if load.poll() is None]
                        self._loads.append(connect(link, namespaces["net"]))
                    except OSError as error:
                        os.write(child_words, describe(error).encode())
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


def run_child(
    request: Message, maps: Mapping[int, int], namespaces: Mapping[str, int], descriptors: list[int], words: int
) -> None:
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
        for name, descriptor in namespaces.items():
            bind(f"/proc/self/fd/{descriptor}", f"{request['network']['folder']}/{name}", 0)
        for wanted in request["mounts"]:
            make_mount(wanted, maps)
        # All go out of the way first and then into place, so that none overwrites another; /dev/null is for standard
        # streams that are not among them.
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        placed = {0: null, 1: null, 2: null} | dict(zip(request["fds"], descriptors, strict=True))
        aside = {number: fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 64) for number, descriptor in placed.items()}
        for number, descriptor in aside.items():
            os.dup2(descriptor, number)
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


def describe(error: BaseException) -> str:
    if isinstance(error, OSError):
        return f"{error.filename or error.strerror}: {error.strerror}"[-MAX_ERROR:]
    return f"{type(error).__name__}: {error}"[:MAX_ERROR]


#: inotify limits of one user namespace with its descendants, within those that the kernel counts for the host's root.
INOTIFY = {"max_inotify_instances": 128, "max_inotify_watches": 65536}


class Link(NamedTuple):
    """Link of a sandbox as ``Network.link`` describes it; ``mac`` in hexadecimal.

    The program finds the namespaces at the files ``user`` and ``net`` of ``folder``, which exist.
    """

    folder: str
    link: str
    bridge: str
    mac: str
    ip: str
    gateway: str
    mtu: int


def connect(network: Link, inside: int) -> subprocess.Popen[str]:
    """Give a network namespace one link to the bridge, whose port is isolated from all others.

    Return the load of its rules, which goes on.
    """
    link, mtu, mac = network.link, network.mtu, bytes.fromhex(network.mac).hex(":")
    if link in (name for _, name in socket.if_nameindex()):
        run_ip(f"link delete {link}")
    run_ip(
        f"link add {link} mtu {mtu} master {network.bridge} type veth "
        f"peer name eth0 mtu {mtu} address {mac} netns /proc/self/fd/{inside}",
        # It exchanges frames with the bridge itself only, never with another isolated port.
        f"link set {link} type bridge_slave isolated on",
        f"link set {link} up",
        descriptor=inside,
    )
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(inside, CLONE_NEWNET)
        configure_inside(network.ip, network.gateway)
        return begin_nft(loopback_rules(network.ip, network.gateway))
    finally:
        setns(home, CLONE_NEWNET)
        os.close(home)


def configure_inside(ip: str, gateway: str) -> None:
    """Set up the network namespace that this process is in, with the gateway as its only neighbour: docs/adr/0031."""
    write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")
    for link in ("all", "eth0"):
        write(f"/proc/sys/net/ipv4/conf/{link}/accept_redirects", "0")
    write("/proc/sys/net/ipv4/conf/eth0/route_localnet", "1")  # for ``loopback_rules``
    if os.path.exists("/proc/sys/net/ipv6"):  # noqa: PTH110
        write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1")
    run_ip(
        "link set lo up",
        f"address add {ip}/32 dev eth0",
        "link set eth0 up",
        f"route add {gateway}/32 dev eth0 scope link",
        f"route add default via {gateway} dev eth0",
        # Packets without another route stay in here: the table "default" is checked last.
        "route add local default dev eth0 table 253 scope host",
    )


#: Ids that one namespace maps.
IDS = 65536


@contextlib.contextmanager
def user_namespaces(outside: int, owners: Iterable[int]) -> Iterator[Mapping[int, int]]:
    """Open a user namespace for each owner on disk that mounts show as ``outside``: their descriptors by owner.

    Mounts that were made with one keep it alive afterwards.
    """
    with contextlib.ExitStack() as opened:
        children = {owner: fork_into(opened, with_network=False) for owner in dict.fromkeys(owners)}
        yield {owner: open_mapped(pid, owner, outside, opened) for owner, pid in children.items()}


def fork_into(opened: contextlib.ExitStack, *, with_network: bool) -> int:
    """Return the pid of a child that stops in a new user namespace, or fails, and ends with ``opened``.

    With a network namespace it is a sandbox's own, not one of its mounts.
    """
    if (pid := os.fork()) == 0:
        try:
            if with_network:  # made first, so that the host owns it: docs/adr/0031
                unshare(CLONE_NEWNET)
            unshare(CLONE_NEWUSER)
            if with_network:
                for name, most in INOTIFY.items():
                    write(f"/proc/sys/user/{name}", str(most))
            os.kill(os.getpid(), signal.SIGSTOP)
        finally:
            os._exit(1)
    opened.callback(os.waitpid, pid, 0)
    opened.callback(os.kill, pid, signal.SIGKILL)
    return pid


def open_mapped(pid: int, inside: int, outside: int, opened: contextlib.ExitStack) -> int:
    """Return the descriptor of a child's user namespace, which maps 65,536 ids from ``inside`` to ``outside``."""
    seen = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    if seen is None or seen.si_code != os.CLD_STOPPED:
        raise OSError(0, "no user namespace was made (see /proc/sys/user)")
    for kind in ("uid_map", "gid_map"):
        write(f"/proc/{pid}/{kind}", f"{inside} {outside} {IDS}")
    return open_namespace(pid, "user", opened)


def open_namespace(pid: int, kind: str, opened: contextlib.ExitStack) -> int:
    """Return the descriptor of a child's namespace. What joins or mounts it keeps it alive."""
    descriptor = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
    opened.callback(os.close, descriptor)
    return descriptor


def write(path: str, text: str) -> None:
    """Write to a file of the kernel, which exists or is an error."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


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
    if os.path.exists(CRUN):  # noqa: PTH110
        # It executes itself again from a read-only mount unless it is on one: no sandbox may write to its file.
        bind(CRUN, CRUN, MOUNT_ATTR_RDONLY)
    # Its children enter sandboxes, and must not be open to them before they execute their program.
    forbid_tracing()
    gc.freeze()
    Server(control).serve()


if __name__ == "__main__":
    main()
