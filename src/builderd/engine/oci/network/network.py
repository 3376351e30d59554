"""The network of a service's sandboxes on the host: one bridge, one firewall table, forwarding."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import subprocess
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from builderd.core.errors import EngineUnavailable
from builderd.engine.oci.network import conntrack
from builderd.engine.oci.network.allocations import MAX_SLOTS, PREFIX, Addresses, bridge_name
from builderd.engine.oci.network.conntrack import NoConntrack
from builderd.engine.oci.network.iproute import run_ip
from builderd.engine.oci.network.nft import Policy, PortShares, add_to_shares, make_rules, table_name

log = logging.getLogger(__name__)

_DEFAULT_MTU = 1500
#: systemd-resolved lists the servers behind its stub in the first one.
_RESOLV_CONFS = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))


@dataclass(frozen=True, slots=True)
class Egress:
    """Firewall settings. ``inside_port`` is the gateway's port at which a sandbox reaches the service itself."""

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
        #: False once the kernel was found unable to delete tracked flows.
        self._can_forget = True
        self._shares = PortShares()
        self._shares_lock = threading.Lock()

    def open(self) -> None:
        """Create what is missing and replace the firewall rules. Idempotent. Raises ``EngineUnavailable``."""
        self.mtu = uplink_mtu()
        try:
            self._open_bridge()
            _write(Path("/proc/sys/net/ipv4/ip_forward"), "1")
            _write(Path(f"/proc/sys/net/ipv6/conf/{self.bridge}/disable_ipv6"), "1", optional=True)
            # Multicast groups joined by sandboxes would fill the bridge's one table; no multicast leaves it anyway.
            for option in ("multicast_snooping", "multicast_router"):
                _write(Path(f"/sys/class/net/{self.bridge}/bridge/{option}"), "0", optional=True)
        except OSError as error:
            raise EngineUnavailable(f"The sandboxes' network cannot be made: {error}.") from error
        self._open_firewall(self._policy())
        self._forget_unused()

    def _open_firewall(self, policy: Policy) -> None:
        try:
            self._apply(make_rules(policy))
        except EngineUnavailable as error:
            self._apply(make_rules(replace(policy, counts_flows=False)))
            log.warning("connections per sandbox not limited, the kernel cannot count them error=%s", error)

    def _open_bridge(self) -> None:
        gateway = self.addresses.gateway
        if not Path("/sys/class/net", self.bridge).exists():
            # A MAC address that the bridge makes by itself would change with its ports.
            run_ip(f"link add {self.bridge} address {mac_of(gateway).hex(':')} mtu {self.mtu} type bridge")
        run_ip(f"address replace {gateway}/{PREFIX} dev {self.bridge}", f"link set {self.bridge} up")

    def _policy(self) -> Policy:
        return Policy(
            instance=self._instance,
            bridge=self.bridge,
            subnet=self.addresses.subnet,
            without_egress=self.addresses.without_egress,
            gateway=self.addresses.gateway,
            inside_port=self._egress.inside_port,
            resolvers=host_resolvers(),
            allow=self._egress.allow,
            deny=self._egress.deny,
        )

    def close(self) -> None:
        """Delete the bridge with all its links, and the firewall rules. Idempotent."""
        # The kernel deletes links of ended sandboxes itself, but only a moment later.
        links = [*(link.name for link in Path("/sys/class/net").glob(f"{self.bridge}-*")), self.bridge]
        for link in links:
            with contextlib.suppress(OSError):  # it is gone already
                run_ip(f"link delete {link}")
        subprocess.run(["nft", "delete", "table", "inet", table_name(self._instance)], capture_output=True, check=False)

    def link(self, slot: int, egress: bool) -> dict[str, Any]:
        """Return the parameters with which the launcher connects a slot."""
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
        """Return the name of the host's end of a slot's link."""
        return f"{self.bridge}-{slot}"

    def share_ports(self, tenants: Mapping[str, str]) -> None:
        """Let each address take its source ports from its tenant's share. Blocks.

        Where nft refuses, the sandboxes run on with the ports that builds use.
        """
        if not tenants:
            return
        with self._shares_lock:
            shares = self._shares.assign(tenants)
            try:
                self._apply(add_to_shares(self._instance, shares))
            except EngineUnavailable as error:
                log.warning("port share not assigned: addresses=%s error=%s", ",".join(tenants), error)

    def _release_ports(self, ip: str) -> None:
        with self._shares_lock:
            if self._shares.release(ip):
                self._delete_element("shares", ip)

    def _delete_element(self, name: str, ip: str) -> None:
        """Delete an address from a set of the table, if it is in there."""
        words = ["nft", "delete", "element", "inet", table_name(self._instance), name, f"{{ {ip} }}"]
        subprocess.run(words, capture_output=True, check=False)

    def forget(self, ip: str, *, abort: bool) -> None:
        """Delete the tracked flows of an ended sandbox, else they count for and reach the next one with its address.

        The kernel tracks an unclosed connection for up to five days, and as long as its peer sends. ``abort``: end the
        host's connections to it, which the kernel closed by itself if they were its own. Blocks.
        """
        self._delete_element("flows", ip)
        self._release_ports(ip)
        self._forget(lambda: conntrack.forget(ip))
        if abort:
            _abort_connections(ip)
        # Packets that came after the link went are queued in the kernel for the next user of the address.
        with contextlib.suppress(OSError):  # there is no entry
            run_ip(f"neighbour delete {ip} dev {self.bridge}")

    def _forget_unused(self) -> None:
        """Delete the flows of all addresses without a link: the previous process may have died before it did."""
        try:
            links = {link.name for link in Path("/sys/class/net", self.bridge, "brif").iterdir()}
            slots = [slot for slot in range(MAX_SLOTS) if self.link_name(slot) in links]
            known = [self.addresses.of(slot, egress) for slot in slots for egress in (True, False)]
            self._forget(lambda: conntrack.forget_others(self.addresses.subnet, [self.addresses.gateway, *known]))
        except OSError:
            log.warning("flows of ended sandboxes not deleted", exc_info=True)

    def _forget(self, call: Callable[[], object]) -> None:
        try:
            call()
        except NoConntrack as error:
            if self._can_forget:
                log.warning("flows of ended sandboxes not deleted, the kernel cannot error=%s", error)
            self._can_forget = False

    def traffic(self, slot: int) -> tuple[int, int]:
        """Return the bytes into and out of the sandbox in this slot."""
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
    """Return a locally administered MAC address made from the IP: neighbour entries stay valid over a restart."""
    return b"\x02\x00" + socket.inet_aton(ip)


def uplink_mtu() -> int:
    """Return the MTU of the default route's link; with a larger one sandboxes would lose large packets."""
    for line in Path("/proc/net/route").read_text().splitlines()[1:]:
        link, destination, *_ = line.split()
        if int(destination, 16) == 0:
            return int(Path("/sys/class/net", link, "mtu").read_text())
    return _DEFAULT_MTU


def host_resolvers() -> tuple[str, ...]:
    """Return the DNS servers that sandboxes can reach; empty when the host has them on loopback only."""
    return parse_nameservers(resolv_conf())


def resolv_conf() -> str:
    """Return the text of the ``resolv.conf`` that names a server off loopback, else of the first that exists."""
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
    A connection that was closed may have an answer that is to be read, so only open ones go. Blocks. A kernel without
    INET_DIAG_DESTROY aborts none.
    """
    words = ["ss", "--kill", "--tcp", "--no-header", "state", "established", "dst", ip]
    subprocess.run(words, capture_output=True, check=False)


def parse_nameservers(text: str) -> tuple[str, ...]:
    """Return the IPv4 name servers of a ``resolv.conf`` that are not on loopback (a stub answers the host only)."""
    servers = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver" and _is_reachable(words[1]):
            servers.append(words[1])
    return tuple(dict.fromkeys(servers))


def _is_reachable(address: str) -> bool:
    try:
        return not IPv4Address(address).is_loopback
    except AddressValueError:
        return False


def make_resolv_conf(servers: Iterable[str], host_text: str) -> str:
    """Return a sandbox's ``resolv.conf``: these servers, with the host's search list and options."""
    kept = [line for line in host_text.splitlines() if line.split()[:1] in (["search"], ["domain"], ["options"])]
    return "".join(f"{line}\n" for line in [*(f"nameserver {server}" for server in servers), *kept])
