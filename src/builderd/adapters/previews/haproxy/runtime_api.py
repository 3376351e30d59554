"""HAProxy's command sockets: one command a connection, an answer in text (management guide, 9.3 and 9.4)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

#: Against a proxy that hangs; it answers in well under a millisecond.
PATIENCE = 10.0
_CHUNK = 65_536
_NO_KEY = "Key not found."
_NO_ENTRY = "entry not found."
_LOCKED = "certificates are currently locked"


class ProxyGone(Exception):
    """Nobody answers on the socket."""


class CommandRefused(Exception):
    """The proxy answered, and not as it does when it has done what was asked."""


class ProxyBusy(Exception):
    """It is at the same thing for somebody else, such as a service that was killed meanwhile: ask again later."""


async def ask(socket: Path, command: str) -> str:
    """What the proxy says to one command. Raises ``ProxyGone``."""
    try:
        async with asyncio.timeout(PATIENCE):
            return await _converse(socket, command)
    except (OSError, TimeoutError) as error:
        raise ProxyGone(f"the proxy does not answer on {socket}: {str(error) or 'no answer in time'}") from error


async def _converse(socket: Path, command: str) -> str:
    reader, writer = await asyncio.open_unix_connection(str(socket), limit=_CHUNK)
    try:
        writer.write(command.encode() + b"\n")
        # The master waits for more commands until there can be none.
        writer.write_eof()
        answer = await reader.read()
    finally:
        writer.close()
    if not answer:
        raise ConnectionResetError("closed without an answer")
    return answer.decode(errors="replace").strip()


@dataclass(frozen=True, slots=True)
class Worker:
    """Who is told: the worker that answers on this socket, or on the master's the one of this process id."""

    socket: Path
    pid: int | None = None

    async def ask(self, command: str) -> str:
        """What it says to one command. Raises ``ProxyGone``."""
        return await ask(self.socket, command if self.pid is None else f"@!{self.pid} {command}")


async def add_entry(worker: Worker, table: Path, key: str, value: str) -> None:
    """Give the map a key that it is not thought to have; one that it has all the same is replaced."""
    delete, add = f"del map {word(table)} {key}", f"add map {word(table)} {key} {value}"
    if worker.pid is None:
        _expect(await worker.ask(f"{delete}; {add}"), _NO_KEY)
    else:
        # The master passes on one command at a time.
        _expect(await worker.ask(delete), _NO_KEY)
        _expect(await worker.ask(add))


async def set_entry(worker: Worker, table: Path, key: str, value: str) -> None:
    """Change the value of a key in one step: no request finds it missing."""
    answer = await worker.ask(f"set map {word(table)} {key} {value}")
    if answer == _NO_ENTRY:
        await add_entry(worker, table, key, value)
    else:
        _expect(answer)


async def delete_entry(worker: Worker, table: Path, key: str) -> None:
    """Remove the key, if it is there."""
    _expect(await worker.ask(f"del map {word(table)} {key}"), _NO_KEY)


async def entries(worker: Worker, table: Path) -> dict[str, str]:
    """All keys and values that are in force."""
    answer = await worker.ask(f"show map {word(table)}")
    return dict(_entries(answer.splitlines(), table))


def _entries(lines: Iterable[str], table: Path) -> Iterable[tuple[str, str]]:
    """A line is ``<reference> <key> <value>``."""
    for line in lines:
        parts = line.split()
        if not parts:
            continue
        if len(parts) != 3 or not parts[0].startswith("0x"):
            raise CommandRefused(f"the proxy says of {table}: {line}")
        yield parts[1], parts[2]


async def replace_certificate(socket: Path, file: Path, pem: str) -> None:
    """Have new connections served with this key and chain.

    Raises ``CommandRefused`` or ``ProxyBusy``: then the old stay.
    """
    lines = "\n".join(line for line in pem.splitlines() if line.strip())
    answer = await ask(socket, f"set ssl cert {word(file)} <<\n{lines}\n")
    if _LOCKED in answer:
        raise ProxyBusy(answer)
    if not answer.startswith(("Transaction created", "Transaction updated")):
        raise CommandRefused(answer)
    answer = await ask(socket, f"commit ssl cert {word(file)}")
    if _LOCKED in answer:
        raise ProxyBusy(answer)
    if "Success!" not in answer:
        await ask(socket, f"abort ssl cert {word(file)}")
        raise CommandRefused(answer)


def word(path: Path) -> str:
    """A path as one word of a command."""
    return "".join(f"\\{character}" if character in "\\ ;" else character for character in str(path))


def _expect(answer: str, *allowed: str) -> None:
    """A command that was carried out says nothing."""
    if answer and answer not in allowed:
        raise CommandRefused(answer)
