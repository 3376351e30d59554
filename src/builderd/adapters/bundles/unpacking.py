"""The service's side of unpacking: runs ``unpack`` as a confined process, since an archive may be hostile."""

from __future__ import annotations

import asyncio
import errno
import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from builderd.domain.bundles import ArchiveLimits
from builderd.domain.errors import RETRY_AFTER, NoCapacity, TooLarge, ValidationFailed, helper_died, machine_fault
from builderd.domain.resources import size_text

_MODULE = "builderd.adapters.bundles.unpack"
_SOURCE = str(Path(__file__).parents[3])
_REPORT_BYTES = 65_536
#: Limit of wall time, as a multiple of the limit of CPU time: the machine may be busy.
_WALL_TIME_FACTOR = 5
#: Archives unpacked at the same time: each may use the memory of its limits.
CONCURRENCY = 2


async def unpack(archive: BinaryIO, out: BinaryIO, limits: ArchiveLimits) -> str:
    """Write the archive's files as a bundle's tar, and return the bundle's hash, which the caller must check.

    Raises ``ValidationFailed``, ``TooLarge``, ``NoCapacity`` or ``MachineFault``.
    """
    in_time = True
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
        async with asyncio.timeout(limits.seconds * _WALL_TIME_FACTOR):
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
    return _judge(report, program.returncode, limits)


async def _all(stream: asyncio.StreamReader) -> bytes:
    """Read to the end, and keep the first ``_REPORT_BYTES``: the process blocks while its pipe is full."""
    kept = b""
    while piece := await stream.read(_REPORT_BYTES):
        kept += piece[: _REPORT_BYTES - len(kept)]
    return kept


def _judge(report: bytes, status: int | None, limits: ArchiveLimits) -> str:
    try:
        answer = json.loads(report)
    except ValueError:
        slow = status in (None, -signal.SIGXCPU, -signal.SIGKILL)
        raise refusal(f"The archive {'takes too long to be unpacked' if slow else 'cannot be read'}.") from None
    if "hash" in answer:
        return str(answer["hash"])
    if "failed" in answer:
        number = str(answer.get("errno", ""))
        if number == str(errno.EFBIG) and limits.room_bytes is not None:
            raise no_room(limits.room_bytes)
        fault = machine_fault(OSError(int(number), answer["failed"])) if number.isdecimal() else None
        raise fault or NoCapacity(
            f"There is no room to unpack the archive: {answer['failed']}.", retry_after=RETRY_AFTER
        )
    if answer.get("too_large") == "True":
        raise TooLarge(answer["refused"])
    raise refusal(answer["refused"])


def no_room(left: int) -> NoCapacity:
    """Return the error for an archive that takes more than the bytes which are left for it."""
    return NoCapacity(
        f"There is no room to unpack the archive on the machine: {size_text(left)} are left for it above the floor. "
        "Its operator can free space where the data directory is (df -h, builderd doctor).",
        retry_after=RETRY_AFTER,
    )


def refusal(why: str) -> ValidationFailed:
    """Return the error for an archive that is refused."""
    return ValidationFailed({"source": [why]}, why)
