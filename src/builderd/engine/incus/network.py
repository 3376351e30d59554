"""Network of all instances: one bridge on each member, alike, and the access list of their instances. Pure.

Incus orders the rules of a list: drop, reject, allow. "Drop 10.0.0.0/8 but allow the gateway" cannot be said, so the
list allows the complement of the networks that are not for sandboxes, and drops everything else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, collapse_addresses
from typing import Any

from builderd.core.addresses import NOT_FOR_SANDBOXES
from builderd.core.errors import EngineUnavailable
from builderd.engine.incus.client import IncusOptions

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


log = logging.getLogger(__name__)

#: Marks the service's own routes (rtnetlink(7), rtm_protocol; free for use by programs of one's own).
PROTOCOL = "152"
#: Seconds within which ``ip`` ends; it takes some milliseconds for a route, and less for each of many.
IP_SECONDS = 30.0


class Routes:
    """``address_of`` returns the address of a member; ``own`` is the member of this machine."""

    def __init__(self, own: str, address_of: Callable[[str], Awaitable[str]]) -> None:
        self._own = own
        self._address_of = address_of
        #: Address of the member to which each address is routed.
        self._known: dict[str, str] = {}

    async def sync(self, wanted: Mapping[str, str]) -> None:
        """Have routes to exactly these addresses (address → member) but for those on this machine."""
        if not self._own:
            return
        shown = await _ip("route", "show", "proto", PROTOCOL)
        # "10.99.0.20 via 10.98.0.12 dev eth0"
        self._known = {words[0]: words[2] for words in map(str.split, shown.splitlines()) if len(words) > 2}
        remote = {address: member for address, member in wanted.items() if member != self._own}
        for address in self._known.keys() - remote.keys():
            await self.remove(address)
        for address, member in remote.items():
            await self.add(address, member)

    async def add(self, address: str, member: str) -> None:
        """Route an address to its member; to this machine's own bridge, where it lies here."""
        if not self._own or member == self._own:
            await self.remove(address)
            return
        via = await self._address_of(member)
        if not via:
            raise EngineUnavailable(f"The member {member} of the cluster has no IPv4 address: see incus cluster list.")
        await _ip("route", "replace", f"{address}/32", "via", via, "proto", PROTOCOL)
        self._known[address] = via

    async def remove(self, address: str) -> None:
        """Remove the route to an address. Idempotent."""
        if address in self._known:
            del self._known[address]
            await _ip("route", "del", f"{address}/32", "proto", PROTOCOL)


async def _ip(*words: str) -> str:
    """Run ``ip``; a cancelled caller leaves none running, which would change routes later."""
    pipe = asyncio.subprocess.PIPE
    try:
        program = await asyncio.create_subprocess_exec("ip", *words, stdout=pipe, stderr=pipe)
    except OSError as error:
        raise EngineUnavailable(f"The program ip (package iproute2) cannot be run: {error.strerror}.") from None
    try:
        async with asyncio.timeout(IP_SECONDS):
            shown, complaint = await program.communicate()
    except TimeoutError:
        raise EngineUnavailable(f"The program ip {' '.join(words)} has not ended within {IP_SECONDS:g} s.") from None
    finally:
        if program.returncode is None:
            with suppress(ProcessLookupError):
                program.kill()
            await program.wait()
    if program.returncode:
        log.warning("route not changed command=%s error=%s", " ".join(words), complaint.decode().strip())
    return shown.decode()
