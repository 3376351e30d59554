"""Routes from this machine to instances on other members, one for each address.

The bridge has the same subnet on every member, so that an address alone does not say where its instance is. Members
must be neighbours: each reaches the other's address without a router between them that does not know the subnet.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from builderd.domain.errors import EngineUnavailable

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
