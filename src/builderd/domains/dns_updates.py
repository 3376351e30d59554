"""Changes of TXT records: by dynamic updates (RFC 2136) with TSIG (RFC 8945), or by a program of the operator."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import dns.asyncquery
import dns.exception
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.tsig
import dns.update

from builderd.previews.port import OrderFailed

TIMEOUT = 10.0
TTL = 60
ALGORITHM = "hmac-sha256"


@dataclass(frozen=True, slots=True)
class TsigKey:
    """Key of updates, written as for nsupdate: ``[algorithm:]name:secret``, with the secret in base64."""

    name: str
    secret: str
    algorithm: str = ALGORITHM

    @classmethod
    def parse(cls, text: str) -> TsigKey:
        """Parse a key. Raises ``ValueError`` for a text of another form."""
        parts = text.split(":")
        if len(parts) == 2:
            return cls(*parts)
        if len(parts) == 3:
            return cls(parts[1], parts[2], parts[0])
        raise ValueError("a key of updates is [algorithm:]name:secret")


class Rfc2136Updates:
    """Implements ``ports.previews.DnsUpdates``. ``server`` is ``address:port`` of the zone's primary name server."""

    def __init__(self, server: str, key: TsigKey) -> None:
        address, _, port = server.rpartition(":")
        self._address, self._port = address.strip("[]"), int(port)
        self._key = key

    async def add_text(self, name: str, value: str) -> None:
        update, owner = await self._update(name)
        # A wildcard and its apex have two values at one name: the other one stays.
        update.add(owner, TTL, "TXT", _quoted(value))
        await self._send(update)

    async def remove_text(self, name: str, value: str) -> None:
        update, owner = await self._update(name)
        update.delete(owner, "TXT", _quoted(value))
        await self._send(update)

    async def _update(self, name: str) -> tuple[dns.update.UpdateMessage, dns.name.Name]:
        owner = dns.name.from_text(name)
        zone = await self._zone(owner)
        key = dns.tsig.Key(self._key.name, self._key.secret, self._key.algorithm)
        update = dns.update.UpdateMessage(zone, keyring=key)
        return update, owner.relativize(zone)

    async def _zone(self, owner: dns.name.Name) -> dns.name.Name:
        """Return the zone of a name: the closest one above of which the server has the SOA record."""
        zone = owner.parent()
        while zone != dns.name.root:
            answer = await self._exchange(dns.message.make_query(zone, "SOA"))
            if any(one.rdtype == dns.rdatatype.SOA and one.name == zone for one in answer.answer):
                return zone
            zone = zone.parent()
        raise OrderFailed(f"the name server {self._address} has no zone for {owner.to_text(omit_final_dot=True)}")

    async def _send(self, update: dns.update.UpdateMessage) -> None:
        code = (await self._exchange(update)).rcode()
        if code != dns.rcode.NOERROR:
            raise OrderFailed(f"the name server {self._address} refused the update: {dns.rcode.to_text(code)}")

    async def _exchange(self, query: dns.message.Message) -> dns.message.Message:
        try:
            answer, _ = await dns.asyncquery.udp_with_fallback(query, self._address, TIMEOUT, self._port)
        except (dns.exception.DNSException, OSError) as error:
            raise OrderFailed(f"the name server {self._address} gives no answer: {type(error).__name__}") from error
        return answer


def _quoted(value: str) -> str:
    return f'"{value}"'


#: Bytes of its output that are shown when it fails.
MAX_SHOWN = 300


class HookUpdates:
    """Implements ``ports.previews.DnsUpdates`` by a program, for DNS providers without dynamic updates.

    It is called as ``PROGRAM set NAME VALUE`` and ``PROGRAM unset NAME VALUE``, without a shell, and is done when it
    ends with 0. It gets ``seconds``, and none of the service's environment. A name may have several values at a time.
    """

    def __init__(self, program: Path, seconds: float) -> None:
        self._program = program
        self._seconds = seconds

    async def add_text(self, name: str, value: str) -> None:
        await self._call("set", name, value)

    async def remove_text(self, name: str, value: str) -> None:
        await self._call("unset", name, value)

    async def _call(self, action: str, name: str, value: str) -> None:
        with tempfile.TemporaryFile() as output:
            try:
                code = await self._run(output, action, name, value)
            except TimeoutError:
                raise OrderFailed(
                    f"acme.hook {self._program} {action} took more than {self._seconds:g} s (acme.hook_timeout)"
                    f"{_shown(output)}"
                ) from None
            except OSError as error:
                raise OrderFailed(f"acme.hook {self._program} cannot be started: {error.strerror}") from error
            if code:
                raise OrderFailed(f"acme.hook {self._program} {action} failed with {code}{_shown(output)}")

    async def _run(self, output: IO[bytes], *words: str) -> int:
        process = await asyncio.create_subprocess_exec(
            self._program,
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            # A file: a child that it leaves behind would keep a pipe open.
            stdout=output,
            stderr=output,
            # The service's own variables contain secrets, such as the vault's key.
            env={"PATH": os.defpath, "HOME": "/root", "LANG": "C.UTF-8"},
            cwd="/",
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(self._seconds):
                return await process.wait()
        finally:
            # Its children too, also when it has ended or the service stops.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def _shown(output: IO[bytes]) -> str:
    """Return the end of its output, in one line."""
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - MAX_SHOWN))
    text = " ".join(output.read().decode("utf-8", "replace").split())
    printable = "".join(character for character in text if character.isprintable())
    return f": {printable}" if printable else ", and printed nothing"
