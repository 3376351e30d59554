"""Changes of TXT records by a program of the operator, for DNS providers without dynamic updates.

It is called as ``PROGRAM set NAME VALUE`` and ``PROGRAM unset NAME VALUE``, without a shell, and is done when it ends
with 0. A name may have several values at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
from pathlib import Path
from typing import IO

from builderd.ports.domains import OrderFailed

#: Bytes of its output that are shown when it fails.
MAX_SHOWN = 300


class HookUpdates:
    """Implements ``ports.domains.DnsUpdates``. The program gets ``seconds``, and none of the service's environment."""

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
