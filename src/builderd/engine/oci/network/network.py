"""The network of a service's sandboxes on the host: one bridge, one firewall table, forwarding.

Sandboxes reach the internet, but not the host, not each other, not the networks that ``NOT_FOR_SANDBOXES`` lists, and
nothing by IPv6. Replies to incoming connections pass. Flows that sandboxes begin are counted, since the host's kernel
tracks the flows of all in one table: a full table drops everyone's packets.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import AddressValueError, IPv4Address, IPv4Network, collapse_addresses
from pathlib import Path
from typing import Any

from builderd.core.addresses import NOT_FOR_SANDBOXES
from builderd.core.errors import EngineUnavailable
from builderd.engine.oci.network import conntrack
from builderd.engine.oci.network.allocations import MAX_SLOTS, PREFIX, Addresses, bridge_name
from builderd.engine.oci.network.iproute import run_ip

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
        self._shares = PortShares()
        self._shares_lock = threading.Lock()

    def open(self) -> None:
        """Create what is missing and replace the firewall rules. Idempotent. Raises ``EngineUnavailable``."""
        self.mtu = uplink_mtu()
        try:
            gateway = self.addresses.gateway
            if not Path("/sys/class/net", self.bridge).exists():
                # A MAC address that the bridge makes by itself would change with its ports.
                run_ip(f"link add {self.bridge} address {mac_of(gateway).hex(':')} mtu {self.mtu} type bridge")
            run_ip(f"address replace {gateway}/{PREFIX} dev {self.bridge}", f"link set {self.bridge} up")
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
        with self._shares_lock:
            if self._shares.release(ip):
                self._delete_element("shares", ip)
        conntrack.forget(ip)
        if abort:
            # The host's connections to a sandbox that is gone, such as the proxy's, end: its visitors would wait for
            # an hour. gVisor's network stack dies without a word to its peers. A connection that was closed may have
            # an answer that is to be read, so only open ones go. A kernel without INET_DIAG_DESTROY ends none.
            words = ["ss", "--kill", "--tcp", "--no-header", "state", "established", "dst", ip]
            subprocess.run(words, capture_output=True, check=False)
        # Packets that came after the link went are queued in the kernel for the next user of the address.
        with contextlib.suppress(OSError):  # there is no entry
            run_ip(f"neighbour delete {ip} dev {self.bridge}")

    def _forget_unused(self) -> None:
        """Delete the flows of all addresses without a link: the previous process may have died before it did."""
        try:
            links = {link.name for link in Path("/sys/class/net", self.bridge, "brif").iterdir()}
            slots = [slot for slot in range(MAX_SLOTS) if self.link_name(slot) in links]
            known = [self.addresses.of(slot, egress) for slot in slots for egress in (True, False)]
            conntrack.forget_others(self.addresses.subnet, [self.addresses.gateway, *known])
        except OSError:
            log.warning("flows of ended sandboxes not deleted", exc_info=True)

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


#: Rejected rather than dropped, so that a program without network access fails at once, not after a minute.
_REFUSE = "reject with icmpx admin-prohibited"

#: How many one sandbox may have at a time: many more than an app has, and so few that it takes dozens of sandboxes to
#: fill the table (nf_conntrack_max is 262,144 on a host with more than 4 GB of memory).
FLOWS = 4096
#: How many it may begin in a second, once it has begun as many at once as it may have. A TCP connection that has ended
#: counts no more and yet is tracked for two minutes.
NEW_FLOWS = 200
#: All sandboxes leave the host by one address, which has a source port for each flow to a port of a destination. Each
#: tenant takes them from a share of its own, or a few sandboxes would take all (docs/adr/0030). From the first port on.
SHARES, SHARE_PORTS, FIRST_PORT = 30, 2048, 4096
#: Source ports of sandboxes without a tenant, such as builds.
_COMMON_PORTS = f"1024-{FIRST_PORT - 1}"


#: Only the first packet of a flow is counted: an unanswered stream stays new. Rejected packets are not tracked.
_COUNTED = f"""\
set flows {{ type ipv4_addr; size 2048; flags dynamic; }}
  set new_flows {{ type ipv4_addr; size 2048; flags dynamic; }}
  chain admit {{
    ct state != new accept
    ct status confirmed accept
    add @new_flows {{ ip saddr limit rate over {NEW_FLOWS}/second burst {FLOWS} packets }} drop
    add @flows {{ ip saddr ct count over {FLOWS} }} drop
    accept
  }}"""
_UNCOUNTED = "chain admit { accept; }"
#: Parsed by ``nft --check`` only: fails on a kernel that cannot count flows.
COUNTING = f"table inet builderd_probe {{\n  {_COUNTED}\n}}\n"


@dataclass(frozen=True, slots=True)
class Policy:
    """Input of the rules. ``without_egress``: subnet of sandboxes without a network. ``resolvers``: reached on port 53.

    ``counts_flows`` needs a kernel that can (CONFIG_NFT_CONNLIMIT).
    """

    instance: str
    bridge: str
    subnet: IPv4Network
    without_egress: IPv4Network
    gateway: str
    inside_port: int
    resolvers: Sequence[str] = ()
    allow: Sequence[IPv4Network] = ()
    deny: Sequence[IPv4Network] = ()
    counts_flows: bool = True


def table_name(instance: str) -> str:
    return f"builderd_{instance}"


def make_rules(policy: Policy) -> str:
    """Return the nft text that replaces the service's table in one transaction (``nft -f -``)."""
    name, bridge = table_name(policy.instance), policy.bridge
    dns = f'iifname "{bridge}" ip daddr @resolvers meta l4proto {{ tcp, udp }} th dport 53 goto admit'
    shares = "\n  ".join(
        f"chain {share_chain(share)} {{\n"
        f"    meta l4proto {{ tcp, udp }} masquerade to :{share_ports(share)[0]}-{share_ports(share)[-1]}\n"
        "    masquerade\n  }"
        for share in range(SHARES)
    )
    return f"""\
table inet {name}
delete table inet {name}
table inet {name} {{
  {_set("near", list(collapse_addresses(NOT_FOR_SANDBOXES)))}
  {_set("resolvers", policy.resolvers)}
  {_set("allowed", policy.allow)}
  {_set("denied", policy.deny)}
  {_COUNTED if policy.counts_flows else _UNCOUNTED}
  chain prerouting {{
    type filter hook prerouting priority raw; policy accept;
    iifname "{bridge}" meta nfproto ipv6 drop
    iifname "{bridge}" ip saddr != {policy.subnet} drop
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname "{bridge}" ct state established,related accept
    iifname "{bridge}" ip saddr {policy.without_egress} {_REFUSE}
    iifname "{bridge}" ip daddr {policy.gateway} tcp dport {policy.inside_port} goto admit
    {dns}
    iifname "{bridge}" drop
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname "{bridge}" ct state established,related accept
    iifname "{bridge}" oifname "{bridge}" drop
    iifname "{bridge}" ip saddr {policy.without_egress} {_REFUSE}
    iifname "{bridge}" ip daddr @denied drop
    {dns}
    iifname "{bridge}" ip daddr @allowed goto admit
    iifname "{bridge}" ip daddr @near drop
    iifname "{bridge}" goto admit
    oifname "{bridge}" ct state established,related accept
    oifname "{bridge}" drop
  }}
  map shares {{ type ipv4_addr : verdict; }}
  {shares}
  chain masquerading {{
    ip saddr vmap @shares
    meta l4proto {{ tcp, udp }} masquerade to :{_COMMON_PORTS}
    masquerade
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {policy.subnet} oifname != "{bridge}" goto masquerading
  }}
}}
"""


def add_to_shares(instance: str, shares: Mapping[str, int]) -> str:
    """Let each address take its source ports from this share, counted from 0; input for ``nft -f -``."""
    elements = ", ".join(f"{ip} : goto {share_chain(share)}" for ip, share in shares.items())
    return f"add element inet {table_name(instance)} shares {{ {elements} }}\n"


def share_chain(share: int) -> str:
    """Return the name of the chain that gives source ports of a share."""
    return f"share_{share}"


def share_ports(share: int) -> range:
    """Return the source ports of a share."""
    first = FIRST_PORT + share * SHARE_PORTS
    return range(first, first + SHARE_PORTS)


def _set(name: str, elements: Sequence[object]) -> str:
    listed = f" elements = {{ {', '.join(str(element) for element in elements)} }}" if elements else ""
    return f"set {name} {{ type ipv4_addr; flags interval; auto-merge;{listed} }}"


class PortShares:
    """Tenants with a sandbox have a share each; beyond ``SHARES`` of them, the fewest have one together."""

    def __init__(self) -> None:
        self._tenants: dict[str, str] = {}
        self._shares: dict[str, int] = {}

    def assign(self, tenants: Mapping[str, str]) -> dict[str, int]:
        """Return the share of each address, by the tenant of each."""
        result = {}
        for ip, tenant in tenants.items():
            if tenant not in self._shares:
                taken = Counter(self._shares.values())
                self._shares[tenant] = min(range(SHARES), key=lambda share: taken[share])
            self._tenants[ip] = tenant
            result[ip] = self._shares[tenant]
        return result

    def release(self, ip: str) -> bool:
        """Forget an address, and its tenant with the last one; return whether it had a share."""
        tenant = self._tenants.pop(ip, None)
        if tenant is not None and tenant not in self._tenants.values():
            del self._shares[tenant]
        return tenant is not None
