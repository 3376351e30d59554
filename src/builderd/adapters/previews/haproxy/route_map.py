"""The routes on disk, in the file that HAProxy loads its map from.

A line of the map is ``host state|access|ip|port|sha256 of the token|builder``, with ``-`` for missing values. That to
an app that speaks HTTP/2 ends in ``|h2c``; a public one has the access ``h2c``, which keeps it off the fast path.
HAProxy ignores blanks at the end of a line and lines that begin with ``#``, so every route has a line of the same
length, and a change writes that one line in place: 10,000 routes cost as much as one, and a reloading proxy or the next
service reads every route in its last state. A line never crosses a page of the file, which one write fills at once: a
killed service leaves the old line or the new one.

The file is not synced: a power failure ends the proxy too, and the starting service puts every route again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

from builderd.domain.ids import BuilderId
from builderd.domain.previews import Address, Route, RouteState
from builderd.linux import atomic_files

#: A host has 253 bytes at most, a value 169. Divides the page size of every machine.
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
    return f"{value}|{_H2C}" if route.h2c else value


def decode(host: str, value: str) -> Route:
    """Parse a value made by ``encode``. Raises ``ValueError`` for any other."""
    h2c = value.endswith(f"|{_H2C}")
    parts = value.removesuffix(f"|{_H2C}").split("|")
    state, access, ip, port, digest, builder = (None if part == _NONE else part for part in parts)
    if access not in ("private", _H2C if h2c else "public") or (access == "private" and digest is None):
        raise ValueError(f"a route is public, or private with a token: {value!r}")
    return Route(
        host,
        RouteState(state or ""),
        Address(ip, int(port)) if ip and port else None,
        token_hash=digest if access == "private" else None,
        builder_id=BuilderId(builder) if builder else None,
        owner_hash=None if access == "private" else digest,
        h2c=h2c,
    )


class RouteMap:
    """The open file and its routes."""

    def __init__(self, path: Path) -> None:
        """Open or create the file. A file in another format is rewritten with its readable routes."""
        self.routes: dict[str, Route] = {}
        self._lines: dict[str, int] = {}
        self._free: list[int] = []
        self._end = 0
        content = path.read_bytes() if path.exists() else b""
        if not self._read(content):
            _rewrite(path, self.routes.values())
            self._read(path.read_bytes())
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def put(self, route: Route) -> None:
        """Write the host's route to its line of the map file."""
        line = self._lines.get(route.host)
        if line is None:
            line = self._free.pop() if self._free else self._grow()
            self._lines[route.host] = line
        self._write(line, f"{route.host} {encode(route)}")
        self.routes[route.host] = route

    def remove(self, host: str) -> None:
        line = self._lines.pop(host, None)
        if line is None:
            return
        self._write(line, _FREE)
        self._free.append(line)
        del self.routes[host]

    def close(self) -> None:
        os.close(self._file)

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


def _line(text: str) -> bytes:
    return text.ljust(LINE - 1).encode("ascii") + b"\n"


def _rewrite(path: Path, routes: Iterable[Route]) -> None:
    content = b"".join(_line(f"{route.host} {encode(route)}") for route in routes)
    atomic_files.replace(path, content, mode=0o644)
