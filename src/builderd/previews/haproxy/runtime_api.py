"""HAProxy's command sockets: one command a connection, an answer in text (management guide, 9.3 and 9.4)."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from builderd.core.ids import BuilderId, TenantId
from builderd.previews.model import Address, Route, RouteState

#: Seconds to wait for an answer; it takes well under a millisecond.
ANSWER_TIMEOUT = 10.0
_CHUNK = 65_536
#: Longest line of several commands: half of the buffer that the proxy reads one into (tune.bufsize, 16 KiB).
LINE_BYTES = 8_000
_NO_KEY = "Key not found."
_NO_ENTRY = "entry not found."


class ProxyGone(Exception):
    """No process answers on the socket."""


class CommandRefused(Exception):
    """The proxy answered with an error."""


async def ask(socket: Path, command: str) -> str:
    """Send one command and return the answer. Raises ``ProxyGone``."""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            reader, writer = await asyncio.open_unix_connection(str(socket), limit=_CHUNK)
            try:
                writer.write(command.encode() + b"\n")
                # The master waits for more commands until the socket is shut down for writing.
                writer.write_eof()
                answer = await reader.read()
            finally:
                writer.close()
        if not answer:
            raise ConnectionResetError("closed without an answer")
        return answer.decode(errors="replace").strip()
    except (OSError, TimeoutError) as error:
        raise ProxyGone(f"the proxy does not answer on {socket}: {str(error) or 'no answer in time'}") from error


async def set_entry(socket: Path, table: Path, key: str, value: str) -> None:
    """Set a key's value; one that exists changes in one step, so that no request finds it missing."""
    answer = await ask(socket, f"set map {escape_path(table)} {key} {value}")
    if answer == _NO_ENTRY:
        answer = await ask(socket, f"add map {escape_path(table)} {key} {value}")
    _expect(answer)


async def delete_entry(socket: Path, table: Path, key: str) -> None:
    """Remove a key. Idempotent."""
    _expect(await ask(socket, f"del map {escape_path(table)} {key}"), _NO_KEY)


async def sync_entries(socket: Path, table: Path, wanted: Mapping[str, str]) -> None:
    """Make a map have these entries alone, many of them by one command line."""
    path, have = escape_path(table), await entries(socket, table)
    commands = [f"del map {path} {key}" for key in have.keys() - wanted.keys()]
    commands += [f"add map {path} {key} {wanted[key]}" for key in wanted.keys() - have.keys()]
    commands += [
        f"set map {path} {key} {wanted[key]}" for key, value in have.items() if wanted.get(key, value) != value
    ]
    for line in command_lines(commands):
        _expect(await ask(socket, line), _NO_KEY)


def command_lines(commands: Iterable[str]) -> Iterator[str]:
    """Yield lines of commands, carried out one after the other, that are not longer than the proxy reads."""
    line = ""
    for command in commands:
        if line and len(line) + len(command) > LINE_BYTES:
            yield line
            line = ""
        line = f"{line}; {command}" if line else command
    if line:
        yield line


async def entries(socket: Path, table: Path) -> dict[str, str]:
    """Return the map's keys and values."""
    found = {}
    for line in (await ask(socket, f"show map {escape_path(table)}")).splitlines():
        # <reference> <key> <value>
        parts = line.split()
        if len(parts) != 3 or not parts[0].startswith("0x"):
            raise CommandRefused(f"unexpected line in the proxy's map {table}: {line}")
        found[parts[1]] = parts[2]
    return found


async def replace_certificate(socket: Path, file: Path, pem: str) -> None:
    """Serve new connections with this key and chain. Raises ``CommandRefused``; the old certificate then stays."""
    lines = "\n".join(line for line in pem.splitlines() if line.strip())
    answer = await ask(socket, f"set ssl cert {escape_path(file)} <<\n{lines}\n")
    if not answer.startswith(("Transaction created", "Transaction updated")):
        raise CommandRefused(answer)
    answer = await ask(socket, f"commit ssl cert {escape_path(file)}")
    if "Success!" not in answer:
        await ask(socket, f"abort ssl cert {escape_path(file)}")
        raise CommandRefused(answer)


async def add_certificate(socket: Path, table: Path, file: Path, host: str, pem: str) -> None:
    """Serve this host with this key and chain. Idempotent. Raises ``CommandRefused``."""
    answer = await ask(socket, f"new ssl cert {escape_path(file)}")
    if "New empty certificate" not in answer and "already exists" not in answer:
        raise CommandRefused(answer)
    is_listed = "already exists" in answer and "Status: Used" in await ask(socket, f"show ssl cert {escape_path(file)}")
    await replace_certificate(socket, file, pem)
    if is_listed:
        # The proxy takes a line twice, and then removes neither by the file's name.
        return
    answer = await ask(socket, f"add ssl crt-list {escape_path(table)} <<\n{file} {host}\n")
    if "Success!" not in answer and "already exists" not in answer:
        raise CommandRefused(answer)


async def remove_certificate(socket: Path, table: Path, file: Path) -> None:
    """Serve the host with the default certificate again. Idempotent."""
    for command in (
        f"del ssl crt-list {escape_path(table)} {escape_path(file)}",
        f"del ssl cert {escape_path(file)}",
    ):
        await ask(socket, command)


async def certificates(socket: Path) -> frozenset[str]:
    """Return the files of all certificates in use."""
    answer = await ask(socket, "show ssl cert")
    return frozenset(line.removeprefix("*") for line in answer.splitlines() if line and not line.startswith("#"))


def escape_path(path: Path) -> str:
    """Escape a path as one word of a command."""
    return "".join(f"\\{character}" if character in "\\ ;" else character for character in str(path))


def _expect(answer: str, *allowed: str) -> None:
    """Raise ``CommandRefused`` for an answer; a command that succeeded prints nothing."""
    if any(line and line not in allowed for line in answer.splitlines()):
        raise CommandRefused(answer)


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
