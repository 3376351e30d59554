"""DNS servers for sandboxes: those of the host that another network namespace can reach. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import AddressValueError, IPv4Address


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
