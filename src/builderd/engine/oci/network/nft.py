"""The firewall of a service's sandboxes, as one nft table. Pure.

Sandboxes reach the internet, but not the host, not each other, not the networks that ``core/addresses`` lists, and
nothing by IPv6. Replies to incoming connections pass. Flows that sandboxes begin are counted, since the host's kernel
tracks the flows of all in one table: a full table drops everyone's packets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, collapse_addresses

from builderd.core.addresses import NOT_FOR_SANDBOXES

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
  {_share_chains()}
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


def _share_chains() -> str:
    return "\n  ".join(
        f"chain {share_chain(share)} {{\n"
        f"    meta l4proto {{ tcp, udp }} masquerade to :{share_ports(share)[0]}-{share_ports(share)[-1]}\n"
        "    masquerade\n  }"
        for share in range(SHARES)
    )


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
