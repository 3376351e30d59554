"""The routes on disk, in the file that HAProxy loads its map from.

A line of the map is ``host state|access|ip|port|sha256 of the token|builder``, with ``-`` for missing values. That to
an app that speaks HTTP/2 ends in ``|h2c``; a public one has the access ``h2c``, which keeps it off the fast path. With
the tenant, for which paused requests are counted, a line ends in ``|h2c|tenant`` or ``|-|tenant``.
HAProxy ignores blanks at the end of a line and lines that begin with ``#``, so every route has a line of the same
length, and a change writes that one line in place: 10,000 routes cost as much as one, and a reloading proxy or the next
service reads every route in its last state. A line never crosses a page of the file, which one write fills at once: a
killed service leaves the old line or the new one.

The file is not synced: a power failure ends the proxy too, and the starting service puts every route again.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from builderd.domain.ids import BuilderId, TenantId
from builderd.domain.previews import Address, Route, RouteState
from builderd.linux import atomic_files

#: A host has 253 bytes at most, a value 208. Divides the page size of every machine.
LINE = 512
_NONE = "-"
_FREE = "#"
_H2C = "h2c"

log = logging.getLogger(__name__)


def encode(route: Route) -> str:
    """Return the value of the map's entry, without blanks, semicolons or other special characters of commands."""
    access = "private" if route.token_hash else _H2C if route.h2c else "public"
    ip, port = (route.destination.ip, str(route.destination.port)) if route.destination else (_NONE, _NONE)
    digest = route.token_hash or route.owner_hash or _NONE
    value = "|".join((route.state, access, ip, port, digest, route.builder_id or _NONE))
    if route.tenant_id:
        return f"{value}|{_H2C if route.h2c else _NONE}|{route.tenant_id}"
    return f"{value}|{_H2C}" if route.h2c else value


def decode(host: str, value: str) -> Route:
    """Parse a value made by ``encode``. Raises ``ValueError`` for any other."""
    # A value of fewer parts names no tenant, or no protocol either.
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
    """The open file and its routes."""

    def __init__(self, path: Path) -> None:
        """Open or create the file. A file in another format is rewritten with its readable routes."""
        self.routes: dict[str, Route] = {}
        #: Hosts whose open routes lead to an IP address.
        self._leads: dict[str, set[str]] = {}
        #: How often requests to an IP address are paused now.
        self._pauses: Counter[str] = Counter()
        self._lines: dict[str, int] = {}
        self._free: list[int] = []
        self._end = 0
        content = path.read_bytes() if path.exists() else b""
        if not self._read(content):
            _rewrite(path, self.routes.values())
            self._read(path.read_bytes())
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        for route in self.routes.values():
            self._note(None, route)

    def is_reserved(self, ip: str) -> bool:
        """Return True for an address that an open route leads to.

        One with a pause is reserved, too: the visitors of the app that came there would wait for the copy of another.
        """
        return ip in self._leads or ip in self._pauses

    def pause(self, ip: str) -> None:
        """Let the proxy pause requests to an address, whatever routes lead there, until as many calls of ``resume``."""
        self._pauses[ip] += 1

    def resume(self, ip: str) -> None:
        self._pauses[ip] -= 1
        if not self._pauses[ip]:
            del self._pauses[ip]

    def hosts_at(self, ip: str) -> Sequence[str]:
        """Return the hosts whose open routes lead to an address."""
        return sorted(self._leads.get(ip, ()))

    def in_force(self, route: Route) -> Route:
        """Return the route as the proxy is to have it: one to an address with a pause pauses."""
        if route.destination is None or route.destination.ip not in self._pauses:
            return route
        return replace(route, state=RouteState.PAUSED, destination=None, h2c=False)

    def all_in_force(self) -> Mapping[str, Route]:
        return {host: self.in_force(route) for host, route in self.routes.items()} if self._pauses else self.routes

    def put(self, route: Route) -> None:
        """Write the host's route to its line of the map file."""
        line = self._lines.get(route.host)
        if line is None:
            line = self._free.pop() if self._free else self._grow()
            self._lines[route.host] = line
        self._write(line, f"{route.host} {encode(route)}")
        self._note(self.routes.get(route.host), route)
        self.routes[route.host] = route

    def with_tenant(self) -> Collection[str]:
        """Return the hosts whose routes name their tenant; those that an earlier version wrote do not."""
        return {host for host, route in self.routes.items() if route.tenant_id is not None}

    def put_lost(self, route: Route) -> None:
        """Put the route of a host that has none, or add its tenant to the one that it has."""
        known = self.routes.get(route.host)
        self.put(route if known is None else replace(known, tenant_id=route.tenant_id))

    def remove(self, host: str) -> None:
        line = self._lines.pop(host, None)
        if line is None:
            return
        self._write(line, _FREE)
        self._free.append(line)
        self._note(self.routes.pop(host), None)

    def close(self) -> None:
        os.close(self._file)

    def _note(self, before: Route | None, after: Route | None) -> None:
        """Count the addresses that routes lead to."""
        left, led_to = _ip_of(before), _ip_of(after)
        if after is not None and led_to is not None:
            self._leads.setdefault(led_to, set()).add(after.host)
        if before is not None and left is not None and left != led_to:
            self._leads[left].discard(before.host)
            if not self._leads[left]:
                del self._leads[left]

    def _read(self, content: bytes) -> bool:
        """Read the routes; return False if the lines do not have the fixed length, so the file must be rewritten."""
        self.routes, self._lines, self._free = {}, {}, []
        lines = content.split(b"\n")[:-1]
        fits = len(content) == len(lines) * LINE
        for number, line in enumerate(lines):
            fits = fits and len(line) == LINE - 1
            text = line.decode("ascii", "replace").strip()
            if not text or text.startswith(_FREE):
                self._free.append(number)
            elif not self._read_line(number, text):
                fits = False
        self._end = len(lines)
        return fits

    def _read_line(self, number: int, text: str) -> bool:
        host, _, value = text.partition(" ")
        try:
            route = decode(host, value.strip())
        except ValueError:
            log.warning("invalid line in route map, dropped line=%r", text)
            return False
        if host in self.routes:
            log.warning("duplicate route in route map, dropped host=%s", host)
            return False
        self.routes[host] = route
        self._lines[host] = number
        return True

    def _grow(self) -> int:
        self._end += 1
        return self._end - 1

    def _write(self, line: int, text: str) -> None:
        os.pwrite(self._file, _line(text), line * LINE)


def _ip_of(route: Route | None) -> str | None:
    return route.destination.ip if route is not None and route.destination is not None else None


def _line(text: str) -> bytes:
    return text.ljust(LINE - 1).encode("ascii") + b"\n"


def _rewrite(path: Path, routes: Iterable[Route]) -> None:
    content = b"".join(_line(f"{route.host} {encode(route)}") for route in routes)
    atomic_files.replace(path, content, mode=0o644)
