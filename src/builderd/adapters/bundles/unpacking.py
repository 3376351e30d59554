"""The service's side of unpacking: a process of its own, which is nobody and may do little, reads a hostile archive."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from builderd.domain.archives import ArchiveLimits
from builderd.domain.errors import NoCapacity, TooLarge, ValidationFailed
from builderd.domain.machine_faults import RETRY_AFTER, helper_died, machine_fault

_MODULE = "builderd.adapters.bundles.unpack"
_SOURCE = str(Path(__file__).parents[3])
_REPORT_BYTES = 65_536
#: The time by the clock, as a multiple of the time on a CPU: a machine may be busy.
_PATIENCE = 5
#: Of archives at once: each may take the memory that its limits say.
AT_ONCE = 2


async def unpack(archive: BinaryIO, out: BinaryIO, limits: ArchiveLimits, places: asyncio.Semaphore) -> str:
    """Write the archive's files as a bundle's tar; the bundle's hash, which is not to be trusted either.

    Raises ``ValidationFailed``, ``TooLarge``, ``NoCapacity`` or ``MachineFault``.
    """
    in_time = True
    async with places:
        program = await asyncio.create_subprocess_exec(
            *(sys.executable, "-s", "-P", "-m", _MODULE, json.dumps(asdict(limits))),
            stdin=archive,
            stdout=out,
            stderr=asyncio.subprocess.PIPE,
            cwd="/",
            env={"PYTHONPATH": _SOURCE, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        assert program.stderr
        try:
            async with asyncio.timeout(limits.seconds * _PATIENCE):
                report = await _all(program.stderr)
                await program.wait()
        except TimeoutError:
            report, in_time = b"", False
        finally:
            if program.returncode is None:
                program.kill()
                await _all(program.stderr)  # unread, it never counts as ended
                await program.wait()
    if in_time and program.returncode == -signal.SIGKILL:
        raise helper_died("the process that unpacks archives", "was killed")
    return _judge(report, program.returncode)


async def _all(stream: asyncio.StreamReader) -> bytes:
    """To its end, of which so many bytes are kept: nothing may be left in a pipe, however much there is."""
    kept = b""
    while piece := await stream.read(_REPORT_BYTES):
        kept += piece[: _REPORT_BYTES - len(kept)]
    return kept


def _judge(report: bytes, status: int | None) -> str:
    try:
        told = json.loads(report)
    except ValueError:
        slow = status in (None, -signal.SIGXCPU, -signal.SIGKILL)
        raise refusal(f"The archive {'takes too long to be unpacked' if slow else 'cannot be read'}.") from None
    if "hash" in told:
        return str(told["hash"])
    if "failed" in told:
        number = str(told.get("errno", ""))
        fault = machine_fault(OSError(int(number), told["failed"])) if number.isdecimal() else None
        raise fault or NoCapacity(f"There is no room to unpack the archive: {told['failed']}.", retry_after=RETRY_AFTER)
    if told.get("too_large") == "True":
        raise TooLarge(told["refused"])
    raise refusal(told["refused"])


def refusal(why: str) -> ValidationFailed:
    """For an archive that is not taken."""
    return ValidationFailed({"source": [why]}, why)
