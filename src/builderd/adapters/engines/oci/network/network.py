"""The network of a service's sandboxes on the host: one bridge, one firewall table, forwarding."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from builderd.adapters.engines.oci.network import conntrack
from builderd.adapters.engines.oci.network.allocations import PREFIX, bridge_name
from builderd.adapters.engines.oci.network.conntrack import NoConntrack
from builderd.adapters.engines.oci.network.netlink import Netlink
from builderd.adapters.engines.oci.network.nft import Policy, make_rules, table_name
from builderd.adapters.engines.oci.network.resolvers import parse_nameservers
from builderd.adapters.engines.oci.network.slots import MAX_SLOTS, Addresses
from builderd.domain.errors import EngineUnavailable

log = logging.getLogger(__name__)

_DEFAULT_MTU = 1500
#: Where systemd-resolved tells the servers behind its stub.
_RESOLV_CONFS = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))


@dataclass(frozen=True, slots=True)
class Egress:
    """``inside_port`` is the gateway's port at which a sandbox reaches the service itself."""

    inside_port: int
    allow: tuple[IPv4Network, ...] = ()
    deny: tuple[IPv4Network, ...] = ()


class Network:
    def __init__(self, instance: str, addresses: Addresses, egress: Egress) -> None:
        self.bridge = bridge_name(instance)
        self.addresses = addresses
        self.mtu = _DEFAULT_MTU
        self._instance = instance
        self._egress = egress
        #: Whether the kernel was not yet found unable to forget flows.
        self._can_forget = True

    def open(self) -> None:
        """Make what is missing and set the rules anew. Idempotent. Raises ``EngineUnavailable``."""
        self.mtu = uplink_mtu()
        try:
            self._open_bridge()
            _write(Path("/proc/sys/net/ipv4/ip_forward"), "1")
            _write(Path(f"/proc/sys/net/ipv6/conf/{self.bridge}/disable_ipv6"), "1", optional=True)
            # Groups that sandboxes join would fill the one table of the bridge; no multicast leaves it anyway.
            for what in ("multicast_snooping", "multicast_router"):
                _write(Path(f"/sys/class/net/{self.bridge}/bridge/{what}"), "0", optional=True)
        except OSError as error:
            raise EngineUnavailable(f"The sandboxes' network cannot be made: {error}.") from error
        self._open_firewall(self._policy())
        self._forget_the_gone()

    def _open_firewall(self, policy: Policy) -> None:
        try:
            self._apply(make_rules(policy))
        except EngineUnavailable as error:
            self._apply(make_rules(replace(policy, counts_flows=False)))
            log.warning("one sandbox can use up the connections of all, since this kernel cannot count: %s", error)

    def _open_bridge(self) -> None:
        gateway = self.addresses.gateway
        with Netlink() as netlink:
            with contextlib.suppress(FileExistsError):
                netlink.create_bridge(self.bridge, mac_of(gateway), self.mtu)
            index = socket.if_nametoindex(self.bridge)
            with contextlib.suppress(FileExistsError):
                netlink.add_address(index, gateway, PREFIX)
            netlink.set_up(index)

    def _policy(self) -> Policy:
        return Policy(
            instance=self._instance,
            bridge=self.bridge,
            subnet=self.addresses.subnet,
            secluded=self.addresses.secluded,
            gateway=self.addresses.gateway,
            inside_port=self._egress.inside_port,
            resolvers=host_resolvers(),
            allow=self._egress.allow,
            deny=self._egress.deny,
        )

    def close(self) -> None:
        """Take the bridge, with every link on it, and the rules away. Idempotent."""
        with Netlink() as netlink:
            # The kernel takes the links of those that are gone away by itself, a moment later.
            for link in Path("/sys/class/net").glob(f"{self.bridge}-*"):
                netlink.delete_link(link.name)
            netlink.delete_link(self.bridge)
        subprocess.run(["nft", "delete", "table", "inet", table_name(self._instance)], capture_output=True, check=False)

    def link(self, slot: int, egress: bool) -> dict[str, Any]:
        """What the launcher needs to connect a slot."""
        ip = self.addresses.of(slot, egress)
        return {
            "link": self.link_name(slot),
            "bridge": self.bridge,
            "mac": mac_of(ip).hex(),
            "ip": ip,
            "gateway": self.addresses.gateway,
            "mtu": self.mtu,
        }

    def link_name(self, slot: int) -> str:
        """The host's end of a slot's link."""
        return f"{self.bridge}-{slot}"

    def is_connected(self, slot: int) -> bool:
        """Whether the slot's link is there, and leads to the bridge as it is now."""
        master = Path("/sys/class/net", self.link_name(slot), "master")
        return master.exists() and master.resolve().name == self.bridge

    def forget(self, ip: str) -> None:
        """Forget what a sandbox left open, or the next one with its address would pay for it and hear from its peers.

        The kernel tracks what nobody ended for up to five days, and for as long as the other side goes on. Blocks.
        """
        element = ["nft", "delete", "element", "inet", table_name(self._instance), "flows", f"{{ {ip} }}"]
        subprocess.run(element, capture_output=True, check=False)
        self._forget(lambda: conntrack.forget(ip))
        _abort_connections(ip)
        try:
            bridge = socket.if_nametoindex(self.bridge)
        except OSError:
            return  # with the bridge all its neighbours are gone
        # What came for it after its link went waits in the kernel for somebody to have the address.
        with Netlink() as netlink:
            netlink.forget_neighbour(bridge, ip)

    def _forget_the_gone(self) -> None:
        """The same for all that have no link: with some that went, the service before did not get to it."""
        try:
            links = {link.name for link in Path("/sys/class/net", self.bridge, "brif").iterdir()}
            slots = [slot for slot in range(MAX_SLOTS) if self.link_name(slot) in links]
            known = [self.addresses.of(slot, egress) for slot in slots for egress in (True, False)]
            self._forget(lambda: conntrack.forget_others(self.addresses.subnet, [self.addresses.gateway, *known]))
        except OSError:
            log.warning("what sandboxes left open that are gone is not forgotten", exc_info=True)

    def _forget(self, call: Callable[[], int]) -> None:
        try:
            call()
        except NoConntrack as error:
            if self._can_forget:
                log.warning("the peers of a sandbox reach the next one with its address, in this kernel: %s", error)
            self._can_forget = False

    def traffic(self, slot: int) -> tuple[int, int]:
        """Bytes into and out of the sandbox in this slot."""
        counters = Path("/sys/class/net", self.link_name(slot), "statistics")
        try:
            return int((counters / "tx_bytes").read_text()), int((counters / "rx_bytes").read_text())
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINVAL):
                return 0, 0
            raise

    @staticmethod
    def _apply(rules: str) -> None:
        done = subprocess.run(["nft", "-f", "-"], input=rules, capture_output=True, text=True, check=False)
        if done.returncode:
            raise EngineUnavailable(f"nft refused the sandboxes' firewall: {done.stderr.strip()}")


def mac_of(ip: str) -> bytes:
    """A locally administered address made from the IP, so that the neighbour table stays true over a restart."""
    return b"\x02\x00" + socket.inet_aton(ip)


def uplink_mtu() -> int:
    """Of the link with the default route; sandboxes behind a larger one would lose their large packets."""
    for line in Path("/proc/net/route").read_text().splitlines()[1:]:
        link, destination, *_ = line.split()
        if int(destination, 16) == 0:
            return int(Path("/sys/class/net", link, "mtu").read_text())
    return _DEFAULT_MTU


def host_resolvers() -> tuple[str, ...]:
    """The DNS servers that sandboxes can reach; empty when the host names none but on loopback."""
    return parse_nameservers(resolv_conf())


def resolv_conf() -> str:
    """The text of the host's ``resolv.conf`` that names a server besides loopback, else of the first there is."""
    texts = [path.read_text() for path in _RESOLV_CONFS if path.exists()]
    return next((text for text in texts if parse_nameservers(text)), texts[0] if texts else "")


def _write(path: Path, text: str, *, optional: bool = False) -> None:
    """Set a kernel parameter, unless it has the value already (a container's host may forbid writing)."""
    if optional and not path.exists():
        return
    if path.read_text().strip() != text:
        path.write_text(text)


def _abort_connections(ip: str) -> None:
    """Abort the host's connections to a sandbox that is gone, such as the proxy's: its visitors would wait for an hour.

    The kernel closes those of a process that it runs. gVisor's own network stack dies without a word to its peers.
    A connection that was closed may hold an answer that is to be read, so only open ones go. Blocks. A kernel without
    INET_DIAG_DESTROY aborts none.
    """
    words = ["ss", "--kill", "--tcp", "--no-header", "state", "established", "dst", ip]
    subprocess.run(words, capture_output=True, check=False)
