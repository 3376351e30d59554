"""The few rtnetlink requests that a sandbox's network needs, each answered by the kernel before it returns.

Why not a library: see docs/adr/0009. Formats: rtnetlink(7), include/uapi/linux/{rtnetlink,if_link,neighbour,veth}.h.
Standard library only, since the launcher uses it.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from types import TracebackType
from typing import Self

_NEWLINK, _DELLINK, _NEWADDR, _NEWROUTE, _DELNEIGH = 16, 17, 20, 24, 29
_REQUEST_ACK = 0x1 | 0x4
_CREATE_EXCL = 0x400 | 0x200
_ERROR = 2

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_NET_NS_FD = 1, 3, 4, 10, 18, 28
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _IFLA_INFO_SLAVE_KIND, _IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
_VETH_INFO_PEER = 1
_IFLA_BRPORT_ISOLATED = 33
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_DST, _RTA_OIF, _RTA_GATEWAY = 1, 4, 5
_DEFAULT_TABLE, _MAIN_TABLE = 253, 254
_UNIVERSE, _ON_LINK, _HOST = 0, 253, 254
_UNICAST, _LOCAL = 1, 2
_NDA_DST = 1
_IFF_UP = 1
_NESTED = 0x8000

LOOPBACK_INDEX = 1


class Netlink:
    """A netlink socket. It stays in the network namespace in which it was opened, wherever the thread goes."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.bind((0, 0))
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def create_bridge(self, name: str, mac: bytes, mtu: int) -> None:
        """Create a bridge with a fixed MAC address: an automatic one changes with its ports."""
        info = attribute(_IFLA_INFO_KIND, b"bridge")
        body = _link() + _text(_IFLA_IFNAME, name) + attribute(_IFLA_ADDRESS, mac) + _number(_IFLA_MTU, mtu)
        self._request(_NEWLINK, _CREATE_EXCL, body + attribute(_IFLA_LINKINFO, info))

    def create_veth(self, name: str, bridge: int, peer: str, peer_mac: bytes, peer_namespace: int, mtu: int) -> None:
        """Create a veth pair from the bridge into a namespace (a descriptor), where its end is named ``peer``."""
        end = _link() + _text(_IFLA_IFNAME, peer) + _number(_IFLA_MTU, mtu) + _number(_IFLA_NET_NS_FD, peer_namespace)
        end += attribute(_IFLA_ADDRESS, peer_mac)
        data = attribute(_IFLA_INFO_DATA | _NESTED, attribute(_VETH_INFO_PEER | _NESTED, end))
        info = attribute(_IFLA_LINKINFO, attribute(_IFLA_INFO_KIND, b"veth") + data)
        body = _link() + _text(_IFLA_IFNAME, name) + _number(_IFLA_MTU, mtu) + _number(_IFLA_MASTER, bridge)
        self._request(_NEWLINK, _CREATE_EXCL, body + info)

    def delete_link(self, name: str) -> bool:
        """Delete a link; return False when there was none."""
        try:
            self._request(_DELLINK, 0, _link() + _text(_IFLA_IFNAME, name))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return False
            raise
        return True

    def set_up(self, index: int) -> None:
        self._request(_NEWLINK, 0, _link(index, _IFF_UP))

    def isolate_port(self, index: int) -> None:
        """Let this bridge port exchange frames with the bridge itself only, never with another isolated port."""
        data = attribute(_IFLA_INFO_SLAVE_DATA | _NESTED, attribute(_IFLA_BRPORT_ISOLATED, b"\1"))
        info = attribute(_IFLA_INFO_SLAVE_KIND, b"bridge") + data
        self._request(_NEWLINK, 0, _link(index) + attribute(_IFLA_LINKINFO, info))

    def add_address(self, index: int, ip: str, prefix: int) -> None:
        address = socket.inet_aton(ip)
        body = struct.pack("BBBBI", socket.AF_INET, prefix, 0, 0, index)
        body += attribute(_IFA_LOCAL, address) + attribute(_IFA_ADDRESS, address)
        self._request(_NEWADDR, _CREATE_EXCL, body)

    def add_link_route(self, ip: str, index: int) -> None:
        """Add the route to one address on this link."""
        self._add_route(index, attribute(_RTA_DST, socket.inet_aton(ip)), prefix=32, scope=_ON_LINK)

    def add_default_route(self, gateway: str, index: int) -> None:
        self._add_route(index, attribute(_RTA_GATEWAY, socket.inet_aton(gateway)))

    def add_fallback_route(self, index: int) -> None:
        """Route packets without another route into the namespace itself, as the last table: docs/adr/0031.

        The table is checked last.
        """
        self._add_route(index, table=_DEFAULT_TABLE, scope=_HOST, kind=_LOCAL)

    def _add_route(
        self,
        index: int,
        where: bytes = b"",
        *,
        prefix: int = 0,
        table: int = _MAIN_TABLE,
        scope: int = _UNIVERSE,
        kind: int = _UNICAST,
    ) -> None:
        """Send a struct rtmsg."""
        static = 4
        body = struct.pack("BBBBBBBBI", socket.AF_INET, prefix, 0, 0, table, static, scope, kind, 0)
        self._request(_NEWROUTE, _CREATE_EXCL, body + where + _number(_RTA_OIF, index))

    def forget_neighbour(self, index: int, ip: str) -> None:
        """Delete an address's neighbour entry on this link, with the packets queued for it, if there is one."""
        state, flags, kind = 0, 0, 0
        body = struct.pack("BxxxiHBB", socket.AF_INET, index, state, flags, kind)
        try:
            self._request(_DELNEIGH, 0, body + attribute(_NDA_DST, socket.inet_aton(ip)))
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise

    def _request(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        header = struct.pack("IHHII", len(body) + 16, kind, flags | _REQUEST_ACK, self._sequence, 0)
        self._socket.send(header + body)
        reply = self._socket.recv(65536)
        code = struct.unpack_from("i", reply, 16)[0] if struct.unpack_from("H", reply, 4)[0] == _ERROR else 0
        if code:
            raise OSError(-code, f"{os.strerror(-code)} (netlink request {kind})")


def _link(index: int = 0, flags: int = 0) -> bytes:
    """struct ifinfomsg; the flags are set, no other is changed."""
    return struct.pack("BxHiII", socket.AF_UNSPEC, 0, index, flags, flags)


def attribute(kind: int, value: bytes) -> bytes:
    """struct nlattr, padded."""
    length = len(value) + 4
    return struct.pack("HH", length, kind) + value + bytes(-length % 4)


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("I", value))


def _text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")
