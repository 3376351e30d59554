"""Network of all instances: one bridge on each member, alike, and the access list of their instances. Pure.

Incus orders the rules of a list: drop, reject, allow. "Drop 10.0.0.0/8 but allow the gateway" cannot be said, so the
list allows the complement of the networks that are not for sandboxes, and drops everything else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, collapse_addresses
from typing import Any

from builderd.adapters.engines.incus.options import IncusOptions
from builderd.domain.addresses import NOT_FOR_SANDBOXES

_ALL = IPv4Network("0.0.0.0/0")
#: Instances without egress have addresses in the last quarter of the subnet.
_QUARTER = 2


def gateway(subnet: IPv4Network) -> str:
    """Return the bridge's own address, the same on every member."""
    return str(subnet[1])


def without_egress(subnet: IPv4Network) -> IPv4Network:
    """Return the part of the subnet for instances that reach no network."""
    return list(subnet.subnets(prefixlen_diff=_QUARTER))[-1]


def addresses(subnet: IPv4Network, *, egress: bool) -> IPv4Network:
    """Return the part of the subnet for instances with or without egress."""
    return without_egress(subnet) if not egress else next(subnet.subnets(prefixlen_diff=1))


def mac(address: str) -> str:
    """Return the MAC address of an IP address.

    Neighbours remember for some 10 s which MAC an address had: of an address that is given out again it is the same.
    """
    return "02:bd:" + ":".join(f"{part:02x}" for part in IPv4Address(address).packed)


def outside(excluded: Iterable[IPv4Network]) -> Sequence[IPv4Network]:
    """Return all networks but these."""
    left = [_ALL]
    for network in collapse_addresses(excluded):
        left = [part for one in left for part in _without(one, network)]
    return sorted(left)


def _without(network: IPv4Network, excluded: IPv4Network) -> Iterable[IPv4Network]:
    if not network.overlaps(excluded):
        return (network,)
    return () if network.subnet_of(excluded) else network.address_exclude(excluded)


def access_list(
    options: IncusOptions,
    inside_port: int,
    allow: Sequence[IPv4Network],
    deny: Sequence[IPv4Network],
    resolvers: Sequence[str],
    members: Sequence[str],
) -> dict[str, Any]:
    """Return the access list: to the internet, the service's own port and name servers; from the members' proxies.

    ``members``: addresses of the cluster's members. The service may work on any of them, and its proxy connects to
    instances on all.
    """
    near = [network for network in NOT_FOR_SANDBOXES if network.version == 4]
    hosts = [IPv4Network(f"{member}/32") for member in members]
    public = ",".join(map(str, outside([*near, options.subnet, *hosts, *deny])))
    here = f"{gateway(options.subnet)}/32"
    inside = ",".join(map(str, options.subnet.address_exclude(without_egress(options.subnet))))
    services = ",".join([here, *map(str, hosts)])
    rules = [
        _rule("the service", source=inside, destination=services, protocol="tcp", destination_port=str(inside_port)),
        _rule("the internet", source=inside, destination=public),
    ]
    if resolvers:
        servers = ",".join(f"{server}/32" for server in resolvers)
        rules += [
            _rule(
                f"name servers by {protocol}",
                source=inside,
                destination=servers,
                protocol=protocol,
                destination_port="53",
            )
            for protocol in ("udp", "tcp")
        ]
    if allow:
        allowed = ",".join(str(part) for one in allow for part in _all_but(one, deny))
        rules.append(_rule("allowed by egress.allow", source=inside, destination=allowed))
    return {
        "description": "apps of builderd",
        "config": {},
        "egress": rules,
        "ingress": [_rule("the members' proxies", source=services, protocol="tcp")],
    }


def same_rules(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Return True if two access lists have the same rules."""

    def rules(of: Mapping[str, Any]) -> list[list[tuple[str, str]]]:
        shown = [{**rule, "direction": kind} for kind in ("egress", "ingress") for rule in of[kind]]
        # Incus leaves out what is empty, or not.
        return sorted(sorted(pair for pair in rule.items() if pair[1]) for rule in shown)

    return rules(found) == rules(wanted)


def _all_but(network: IPv4Network, excluded: Sequence[IPv4Network]) -> Sequence[IPv4Network]:
    left = [network]
    for other in excluded:
        left = [part for one in left for part in _without(one, other)]
    return left


def _rule(description: str, **match: str) -> dict[str, str]:
    return {"action": "allow", "state": "enabled", "description": description, **match}


def network_config(options: IncusOptions) -> dict[str, str]:
    """Return the configuration of the bridge network: no DHCP, no DNS, no IPv6.

    The list stands on the network: on single NICs it would need connection tracking on bridges.
    """
    return {
        "ipv4.address": f"{gateway(options.subnet)}/{options.subnet.prefixlen}",
        "ipv4.nat": "true",
        "ipv4.dhcp": "false",
        "ipv6.address": "none",
        "dns.mode": "none",
        "bridge.mtu": "1500",
        "security.acls": options.network,
        "security.acls.default.egress.action": "drop",
        "security.acls.default.ingress.action": "drop",
    }
