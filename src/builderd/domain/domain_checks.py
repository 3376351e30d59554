"""Judgement of a custom domain's records, in words that say what to change. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from builderd.domain.addresses import Address, parse

#: Addresses of one host that are looked at.
MAX_ADDRESSES = 20


def addresses_of(texts: Sequence[str]) -> list[Address]:
    """Parse the addresses of a host, each once."""
    found = [parse(text) for text in texts[:MAX_ADDRESSES]]
    return list(dict.fromkeys(one for one in found if one is not None))


def no_record(host: str, ours: Sequence[str]) -> str:
    return f"no record: {host} has no A or AAAA record; create {_wanted(host, ours)}"


def strangers(found: Sequence[Address], ours: Sequence[str]) -> list[Address]:
    """Return the addresses that are not the service's."""
    own = {parse(text) for text in ours}
    return [address for address in found if address not in own]


def points_elsewhere(host: str, alias: str, strange: Sequence[Address], ours: Sequence[str]) -> str:
    """Return the reason for records that lead to other machines, all of them or some."""
    through = f" (through the CNAME to {alias})" if alias and alias != host else ""
    listed = ", ".join(map(str, strange))
    return f"points elsewhere: {host} leads to {listed}{through}; it should be {_wanted(host, ours)}"


def ipv6_elsewhere(host: str, strange: Sequence[Address], ours: Sequence[str]) -> str:
    listed = ", ".join(map(str, strange))
    own = ", ".join(text for text in ours if ":" in text)
    cure = f"change it to {own}" if own else "remove it, since this service has no IPv6 address"
    return f"IPv6 points elsewhere: {host} has the AAAA record {listed}, which visitors and authorities prefer; {cure}"


def proxy_in_front(host: str, address: Address, told: str) -> str:
    return (
        f"a proxy in front: {host} leads to {address}, which answers by itself ({told}) and does not pass "
        "/.well-known/acme-challenge/ on: let it pass that path over plain HTTP, or point the name here directly"
    )


def unreachable(host: str, address: Address, port: int, told: str) -> str:
    return (
        f"challenge path not reachable: http://{host}:{port}/.well-known/acme-challenge/ at {address} does not answer "
        f"as it should ({told}): open port {port} in the firewall, and let nothing else answer there"
    )


def caa_forbids(host: str, caa: Sequence[tuple[str, str]], authority: Collection[str]) -> str | None:
    """Return why CAA records (tag, value) forbid this authority, or None. Unknown names of the authority: only a ban.

    The records are those of the closest name that has any; only ``issue`` counts for hosts (RFC 8659, 4.2).
    """
    issuers = [value.partition(";")[0].strip().lower() for tag, value in caa if tag.lower() == "issue"]
    if not issuers or (authority and any(one in authority for one in issuers)):
        return None
    allowed = ", ".join(one for one in issuers if one)
    if not authority and allowed:
        return None
    wanted = " or ".join(f'0 issue "{name}"' for name in sorted(authority)) or "one for the authority of this service"
    return f"CAA forbids: the CAA records of {host} allow {allowed or 'no authority'}; add {wanted}"


def _wanted(host: str, ours: Sequence[str]) -> str:
    if not ours:
        return "a record for the public address of this service, which its operator sets as acme.addresses"
    kinds = [f"{'AAAA' if ':' in text else 'A'} {text}" for text in ours]
    return f"a record {host} {' and '.join(kinds)}"
