"""The firewall of a service's sandboxes, as one nft table. Pure.

Sandboxes reach the internet and nothing nearer: not the host, not each other, not the networks around. Replies to
whoever reaches them pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network

#: Private, shared, link-local and benchmark networks (RFC 6890), multicast and what is reserved above it.
NEAR = (
    "0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12, 192.168.0.0/16, 198.18.0.0/15,"
    " 224.0.0.0/3"
)

#: Said rather than kept silent, so that a program without a way out goes on at once instead of waiting for a minute.
_REFUSE = "reject with icmpx admin-prohibited"


@dataclass(frozen=True, slots=True)
class Policy:
    """``secluded`` is where sandboxes without a way out are. ``resolvers`` are reached on port 53."""

    instance: str
    bridge: str
    subnet: IPv4Network
    secluded: IPv4Network
    gateway: str
    inside_port: int
    resolvers: Sequence[str] = ()
    allow: Sequence[IPv4Network] = ()
    deny: Sequence[IPv4Network] = ()


def table_name(instance: str) -> str:
    return f"builderd_{instance}"


def make_rules(policy: Policy) -> str:
    """Replaces the service's table in one transaction; input for ``nft -f -``."""
    name, bridge = table_name(policy.instance), policy.bridge
    dns = f'iifname "{bridge}" ip daddr @resolvers meta l4proto {{ tcp, udp }} th dport 53 accept'
    return f"""\
table inet {name}
delete table inet {name}
table inet {name} {{
  set near {{ type ipv4_addr; flags interval; elements = {{ {NEAR} }} }}
  {_set("resolvers", policy.resolvers)}
  {_set("allowed", policy.allow)}
  {_set("denied", policy.deny)}
  chain prerouting {{
    type filter hook prerouting priority raw; policy accept;
    iifname "{bridge}" meta nfproto ipv6 drop
    iifname "{bridge}" ip saddr != {policy.subnet} drop
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname "{bridge}" ct state established,related accept
    iifname "{bridge}" ip saddr {policy.secluded} {_REFUSE}
    iifname "{bridge}" ip daddr {policy.gateway} tcp dport {policy.inside_port} accept
    {dns}
    iifname "{bridge}" drop
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname "{bridge}" ct state established,related accept
    iifname "{bridge}" oifname "{bridge}" drop
    iifname "{bridge}" ip saddr {policy.secluded} {_REFUSE}
    iifname "{bridge}" ip daddr @denied drop
    {dns}
    iifname "{bridge}" ip daddr @allowed accept
    iifname "{bridge}" ip daddr @near drop
    iifname "{bridge}" accept
    oifname "{bridge}" ct state established,related accept
    oifname "{bridge}" drop
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {policy.subnet} oifname != "{bridge}" masquerade
  }}
}}
"""


def _set(name: str, elements: Sequence[object]) -> str:
    listed = f" elements = {{ {', '.join(str(element) for element in elements)} }}" if elements else ""
    return f"set {name} {{ type ipv4_addr; flags interval; auto-merge;{listed} }}"
