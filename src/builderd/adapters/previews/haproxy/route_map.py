"""Routes by host, and the form in which the proxy's map has them.

A value of the map is ``state|access|ip|port|sha256 of the token|builder``, with ``-`` for missing values. That to an
app that speaks HTTP/2 ends in ``|h2c``. With the tenant, for which paused requests are counted, it ends in
``|h2c|tenant`` or ``|-|tenant``.

The file of the map is written before the proxy starts or reloads; later changes are in the proxy's memory, from which
the next service reads them. A proxy that died begins with the routes that the service knows, or closed ones.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping

from builderd.domain.ids import BuilderId, TenantId
from builderd.domain.previews import Address, Route, RouteState

_NONE = "-"
_H2C = "h2c"

log = logging.getLogger(__name__)


def encode(route: Route) -> str:
    """Return the value of the map's entry, without blanks, semicolons or other special characters of commands."""
    access = "private" if route.token_hash else "public"
    ip, port = (route.destination.ip, str(route.destination.port)) if route.destination else (_NONE, _NONE)
    digest = route.token_hash or route.owner_hash or _NONE
    value = "|".join((route.state, access, ip, port, digest, route.builder_id or _NONE))
    if route.tenant_id:
        return f"{value}|{_H2C if route.h2c else _NONE}|{route.tenant_id}"
    return f"{value}|{_H2C}" if route.h2c else value


def decode(host: str, value: str) -> Route:
    """Parse a value made by ``encode``. Raises ``ValueError`` for any other."""
    parts = value.split("|")
    parts += [_NONE] * (8 - len(parts))
    state, access, ip, port, digest, builder, protocol, tenant = (None if part == _NONE else part for part in parts)
    private = access == "private"
    route = Route(
        host,
        RouteState(state or ""),
        Address(ip, int(port)) if ip and port else None,
        token_hash=digest if private else None,
        builder_id=BuilderId(builder) if builder else None,
        owner_hash=None if private else digest,
        h2c=protocol == _H2C,
        tenant_id=TenantId(tenant) if tenant else None,
    )
    if encode(route) != value:
        raise ValueError(f"a route is public, or private with a token: {value!r}")
    return route


class RouteMap:
    """All routes by host, and the hosts that lead to an address."""

    def __init__(self, values: Mapping[str, str]) -> None:
        """Read the entries of a proxy's map; invalid ones are dropped."""
        self.routes: dict[str, Route] = {}
        #: Hosts whose open routes lead to an IP address.
        self._hosts_at: defaultdict[str, set[str]] = defaultdict(set)
        for host, value in values.items():
            try:
                self.put(decode(host, value))
            except ValueError:
                log.warning("invalid route in the proxy's map, dropped host=%s value=%r", host, value)

    def is_reserved(self, ip: str) -> bool:
        """Return True for an address that an open route leads to."""
        return bool(self._hosts_at.get(ip))

    def values(self) -> Mapping[str, str]:
        """Return the entries of the proxy's map."""
        return {host: encode(route) for host, route in self.routes.items()}

    def put(self, route: Route) -> None:
        self.remove(route.host)
        self.routes[route.host] = route
        if route.destination is not None:
            self._hosts_at[route.destination.ip].add(route.host)

    def remove(self, host: str) -> None:
        before = self.routes.pop(host, None)
        if before is not None and before.destination is not None:
            hosts = self._hosts_at[before.destination.ip]
            hosts.discard(host)
            if not hosts:
                del self._hosts_at[before.destination.ip]
