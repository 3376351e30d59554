"""Long scans take neither the threads of other work nor all places of small bundles."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from tests.gate import bundle_of

from builderd.adapters.scanners.tripwire.scanner import MAX_LARGE_SCANS, MAX_SCANS, Toolbox, TripwireScanner
from builderd.domain.bundles import Bundle
from builderd.domain.reviews import MB, ReviewLimits
from builderd.domain.sources import Kind
from builderd.ports.scanners import Scan

SMALL = bundle_of({"app.py": "print(1)\n", "photo.jpg": b"\0" * 2 * MB})
LARGE = bundle_of({f"m{n}.py": "x = 1\n" * 100_000 for n in range(2)})
DONE = Scan((), {}, (), {})


class SlowScanner(TripwireScanner):
    """Scans large bundles until it may end."""

    def __init__(self) -> None:
        super().__init__(self._no_tools)
        self.may_end = threading.Event()
        self.begun: list[Bundle] = []

    @staticmethod
    def _no_tools() -> Toolbox:
        raise AssertionError("no tool is used")

    def _scan(self, bundle: Bundle, limits: ReviewLimits, run: Mapping[str, Kind]) -> Scan:
        if bundle is LARGE:
            self.begun.append(bundle)
            assert self.may_end.wait(60)
        return DONE


async def _until_large_scans_run(scanner: SlowScanner) -> None:
    while len(scanner.begun) < MAX_LARGE_SCANS:
        # By a thread of other work.
        await asyncio.to_thread(time.sleep, 0.01)


async def test_large_scans_leave_places_for_small_ones_and_threads_for_other_work() -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    scanner, limits = SlowScanner(), ReviewLimits()
    large = [asyncio.create_task(scanner.scan(LARGE, limits)) for _ in range(MAX_SCANS + 1)]
    try:
        async with asyncio.timeout(20):
            await _until_large_scans_run(scanner)
            assert await scanner.scan(SMALL, limits) == DONE
        assert len(scanner.begun) == MAX_LARGE_SCANS
    finally:
        scanner.may_end.set()
        assert await asyncio.gather(*large) == [DONE] * len(large), "they wait for each other"
        await scanner.close()


async def test_cancelled_scan_holds_its_place_until_its_thread_is_done() -> None:
    scanner, limits = SlowScanner(), ReviewLimits()
    cancelled = [asyncio.create_task(scanner.scan(LARGE, limits)) for _ in range(MAX_LARGE_SCANS)]
    await _until_large_scans_run(scanner)
    for one in cancelled:
        one.cancel()
    await asyncio.wait(cancelled)
    more = [asyncio.create_task(scanner.scan(LARGE, limits)) for _ in range(MAX_SCANS)]
    try:
        async with asyncio.timeout(20):
            for _ in range(MAX_SCANS + 1):
                assert await scanner.scan(SMALL, limits) == DONE
        assert len(scanner.begun) == MAX_LARGE_SCANS
    finally:
        scanner.may_end.set()
        assert await asyncio.gather(*more) == [DONE] * len(more)
        await scanner.close()
