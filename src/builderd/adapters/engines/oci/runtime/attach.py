"""Attaching a sandbox's network namespace to the bridge: run by the launcher itself. Standard library only."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from builderd.adapters.engines.oci.network.iproute import run_ip
from builderd.linux.syscalls import CLONE_NEWNET, CLONE_NEWUSER, setns, unshare

#: inotify limits of one user namespace with its descendants, within those that the kernel counts for the host's root.
INOTIFY = {"max_inotify_instances": 128, "max_inotify_watches": 65536}


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
    with contextlib.ExitStack() as opened:
        inside, home = (_open_network(who, opened) for who in (pid, "self"))  # the first may be gone
        if os.path.samestat(os.fstat(inside), os.fstat(home)):  # the sandbox has ended
            raise OSError(errno.ESRCH, "the sandbox has ended, its pid is a process of the host")
        limits = limit(pid)
        try:
            connect(network, home, inside)
        finally:
            _, status = os.waitpid(limits, 0)
    if status:
        raise OSError(0, "the user namespace cannot be limited (see /proc/sys/user)")


def _open_network(process: int | str, opened: contextlib.ExitStack) -> int:
    descriptor = os.open(f"/proc/{process}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    opened.callback(os.close, descriptor)
    return descriptor


def connect(network: Link, home: int, inside: int) -> None:
    """Make the link between two network namespaces, this process's own and that of a sandbox."""
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
    setns(inside, CLONE_NEWNET)
    try:
        configure_inside(network.ip, network.gateway)
    finally:
        setns(home, CLONE_NEWNET)


def limit(pid: int) -> int:
    """Limit the user namespace of a process; return the pid of the child that does it and cannot leave it."""
    namespace = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if (child := os.fork()) == 0:
            _limit(namespace)
        return child
    finally:
        os.close(namespace)


def _limit(namespace: int) -> None:
    """Write the limits and end, in a child."""
    try:
        setns(namespace, CLONE_NEWUSER)
        for name, most in INOTIFY.items():
            write(f"/proc/sys/user/{name}", str(most))
        os._exit(0)
    finally:
        os._exit(1)


def configure_inside(ip: str, gateway: str) -> None:
    """Set up the network namespace that this process is in, with the gateway as its only neighbour: docs/adr/0031."""
    write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")
    for link in ("all", "eth0"):
        write(f"/proc/sys/net/ipv4/conf/{link}/accept_redirects", "0")
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
        maps: dict[int, int] = {}
        for owner in dict.fromkeys(owners):
            maps[owner] = user_namespace(owner, outside)
            opened.callback(os.close, maps[owner])
        yield maps


def user_namespace(inside: int, outside: int) -> int:
    """Return the descriptor of a user namespace that maps 65,536 ids from ``inside`` to ``outside``."""
    if (pid := os.fork()) == 0:
        try:
            unshare(CLONE_NEWUSER)
            os._exit(0)
        finally:
            os._exit(1)
    try:
        # Until it is reaped, /proc shows the namespace of an ended child.
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        if ended is None or ended.si_status:
            raise OSError(0, "no user namespace was made (see user.max_user_namespaces)")
        for kind in ("uid_map", "gid_map"):
            write(f"/proc/{pid}/{kind}", f"{inside} {outside} {IDS}")
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.waitpid(pid, 0)


def write(path: str, text: str) -> None:
    """Write to a file of the kernel, which exists or is an error."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
