"""Routes from this machine to instances on other members, one for each address.

The bridge has the same subnet on every member, so that an address alone does not say where its instance is. Members
must be neighbours: each reaches the other's address without a router between them that does not know the subnet.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress

from builderd.domain.errors import EngineUnavailable

log = logging.getLogger(__name__)

#: Marks the service's own routes (rtnetlink(7), rtm_protocol; free for use by programs of one's own).
PROTOCOL = "152"
#: Marks those of a standby, which leads visits to apps itself. They have a table of their own, with a rule by which
#: connections of this machine alone find them: what another member sends to an app here is never led away by one that
#: a killed standby has left.
STANDBY_PROTOCOL, STANDBY_TABLE, STANDBY_RULE = "153", "15300", "15300"
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
        # Those that this service has had as a standby, and that are none of its own now.
        await put_standby_routes({})

    def next_hop(self, address: str) -> str:
        """Return the address of the member to which an address is routed; "" of one on this machine."""
        return self._known.get(address, "")

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


async def put_standby_routes(hops: Mapping[str, str]) -> frozenset[str]:
    """Have routes of a standby to exactly these addresses (address → address of its member), and the rule for them.

    Those that stay are not touched, so that no visit meets a moment without its way. Return the addresses to which the
    kernel takes none, such as by a member that is no neighbour now. Raises ``EngineUnavailable`` where they cannot be
    changed at all.
    """
    have, others = await _standby_routes()
    lines = [f"route flush proto {STANDBY_PROTOCOL}"] if others else []
    has_rule = bool(await _ip("rule", "show", "pref", STANDBY_RULE))
    if has_rule is not bool(hops):
        lines.append(f"rule {'add' if hops else 'del'} pref {STANDBY_RULE} iif lo lookup {STANDBY_TABLE}")
    in_table = f"proto {STANDBY_PROTOCOL} table {STANDBY_TABLE}"
    lines += [f"route del {address}/32 {in_table}" for address in have.keys() - hops.keys()]
    lines += [f"route replace {one}/32 via {via} {in_table}" for one, via in hops.items() if have.get(one) != via]
    if not lines:
        return frozenset()
    # Goes on after a line that fails.
    await _ip("-force", "-batch", "-", lines=lines)
    have, _ = await _standby_routes() if hops else ({}, 0)
    return frozenset(one for one, via in hops.items() if have.get(one) != via)


async def _standby_routes() -> tuple[dict[str, str], int]:
    """Return the routes of the standby's table, and how many of its routes are elsewhere: of an earlier version."""
    shown = await _ip("route", "show", "table", "all", "proto", STANDBY_PROTOCOL)
    # "10.99.0.20 via 10.98.0.12 dev eth0 table 15300 linkdown"; of the main table without its name.
    found = [line.split() for line in shown.splitlines()]
    own = [words for words in found if f"table {STANDBY_TABLE}" in " ".join(words)]
    return {words[0]: words[2] for words in own}, len(found) - len(own)


async def _ip(*words: str, lines: Iterable[str] = ()) -> str:
    """Run ``ip``; a cancelled caller leaves none running, which would change routes later."""
    pipe = asyncio.subprocess.PIPE
    try:
        program = await asyncio.create_subprocess_exec("ip", *words, stdin=pipe, stdout=pipe, stderr=pipe)
    except OSError as error:
        raise EngineUnavailable(f"The program ip (package iproute2) cannot be run: {error.strerror}.") from None
    try:
        async with asyncio.timeout(IP_SECONDS):
            shown, complaint = await program.communicate("\n".join(lines).encode())
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
