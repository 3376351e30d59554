"""The Node.js that waits for the scripts of a review: used once, shared by no one, and no verdict when it is killed."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from tests.gate import bundle_of

from builderd.adapters.scanners.tripwire.scanner import RETRIES, TripwireScanner
from builderd.adapters.scanners.tripwire.toolbox import find_toolbox
from builderd.domain.errors import MachineFault
from builderd.domain.review_policies import ReviewLimits
from builderd.ports.scanners import Scan

LIMITS = ReviewLimits(wall_seconds=60, cpu_seconds=20, memory_bytes=800_000_000)
SOUND, BROKEN = (bundle_of({"app.js": f"console.log({text});\n"}) for text in ("1", "1("))
PYTHON = bundle_of({"app.py": "print(1)\n"})
NODE = shutil.which("node")

pytestmark = pytest.mark.skipif(NODE is None, reason="Node.js is not on this machine")


@asynccontextmanager
async def scanner_with(node: Path | None) -> AsyncIterator[TripwireScanner]:
    scanner = TripwireScanner(lambda: find_toolbox(None, node))
    try:
        yield scanner
    finally:
        await scanner.close()


@asynccontextmanager
async def warm_scanner() -> AsyncIterator[TripwireScanner]:
    """A scanner that has read scripts once."""
    async with scanner_with(Path(str(NODE))) as scanner:
        assert rules(await scanner.scan(SOUND, LIMITS)) == set()
        yield scanner


def rules(scan: Scan) -> set[str]:
    assert scan.failure is None
    return {hit.rule for hit in scan.hits}


def family(scanner: TripwireScanner) -> dict[int, str]:
    """Command lines of all that the worker has started, by pid."""
    listed = subprocess.run(["ps", "-ww", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    assert scanner._worker
    found: dict[int, str] = {scanner._worker.pid: ""}
    rows = [line.split(None, 2) for line in listed.splitlines()[1:]]
    for _ in range(4):
        found |= {int(pid): args for pid, parent, args in rows if int(parent) in found}
    del found[scanner._worker.pid]
    return found


async def waiting(scanner: TripwireScanner, but: Sequence[int] = ()) -> int:
    """Return the pid of the Node.js that waits for a review, other than those."""
    async with asyncio.timeout(60):
        while True:
            found = [pid for pid, args in family(scanner).items() if "--jitless" in args and pid not in but]
            if found and b"pipe" in Path(f"/proc/{found[0]}/wchan").read_bytes():
                return found[0]
            await asyncio.sleep(0.02)


async def until_gone(pid: int) -> None:
    """Wait until the process has ended; a zombie has."""
    async with asyncio.timeout(60):
        with suppress(FileNotFoundError, ProcessLookupError):
            while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                await asyncio.sleep(0.01)


async def test_checker_waits_for_scripts_and_is_used_once() -> None:
    async with warm_scanner() as scanner:
        first = await waiting(scanner)
        assert rules(await scanner.scan(PYTHON, LIMITS)) == set()
        assert await waiting(scanner) == first, "a review without scripts takes none"
        assert rules(await scanner.scan(BROKEN, LIMITS)) == {"SAN-syntax"}
        second = await waiting(scanner, but=[first])
        await until_gone(first)
        assert rules(await scanner.scan(SOUND, LIMITS)) == set(), "nothing is left of another's review"
        third = await waiting(scanner, but=[first, second])
        assert rules(await scanner.scan(BROKEN, replace(LIMITS, memory_bytes=700_000_000))) == {"SAN-syntax"}
        assert await waiting(scanner) == third, "one with other limits is not taken"
    await until_gone(third)


async def test_small_reviews_get_the_checker_after_a_large_one() -> None:
    large = bundle_of({"app.js": "1;\n", **{f"{n}.md": "word " * 110_000 for n in range(2)}})
    async with scanner_with(Path(str(NODE))) as scanner:
        assert rules(await scanner.scan(large, LIMITS)) == set()
        first = await waiting(scanner)
        assert rules(await scanner.scan(large, LIMITS)) == set()
        assert await waiting(scanner) == first, "it has too little time for a large one"
        assert rules(await scanner.scan(SOUND, LIMITS)) == set()
        await until_gone(first)
        assert rules(await scanner.scan(SOUND, LIMITS)) == set()


async def test_checker_is_confined_before_it_has_read_anything() -> None:
    async with warm_scanner() as scanner:
        status = Path(f"/proc/{await waiting(scanner)}/status").read_text()
        limits = Path(f"/proc/{await waiting(scanner)}/limits").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert (fields["Seccomp"], fields["NoNewPrivs"], int(fields["CapEff"], 16)) == ("2", "1", 0)
    assert fields["NSpid"].split()[-1] != fields["Pid"], "it is in the review's own namespace"
    assert f"{LIMITS.memory_bytes} " in limits


@pytest.mark.parametrize("victim", ["checker", "review"])
async def test_checker_that_was_killed_while_it_waited_is_replaced(victim: str) -> None:
    async with warm_scanner() as scanner:
        pid = await waiting(scanner)
        if victim == "review":
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(pid, signal.SIGKILL)
        await until_gone(pid)
        assert rules(await scanner.scan(BROKEN, LIMITS)) == {"SAN-syntax"}
        assert rules(await scanner.scan(SOUND, LIMITS)) == set()


async def test_review_whose_checker_is_killed_at_work_is_retried_then_fails(tmp_path: Path) -> None:
    """Use a Node.js that hangs once a file is there."""
    tmp_path.chmod(0o755)
    name, hangs, node = f"{os.getpid()}.375", tmp_path / "hangs", tmp_path / "node"
    node.write_text(
        f'#!/bin/sh\ncat > /dev/null\n[ -e {hangs} ] && exec sleep {name}\necho \'{{"problems": [], "trees": []}}\'\n'
    )
    node.chmod(0o755)
    async with scanner_with(node) as scanner:
        assert rules(await scanner.scan(SOUND, LIMITS)) == set()
        hangs.touch()
        scanning = asyncio.create_task(scanner.scan(SOUND, LIMITS))
        gone: set[int] = set()
        for _ in range(1 + RETRIES):
            async with asyncio.timeout(60):
                while not (found := [p for p, args in family(scanner).items() if name in args and p not in gone]):
                    await asyncio.sleep(0.02)
            gone.add(found[0])
            os.kill(found[0], signal.SIGKILL)
        with pytest.raises(MachineFault, match="the review's scanner was killed") as fault:
            await scanning
        assert fault.value.retry_after
