"""Contract of every scanner."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.fakes.scanners import FakeScanner
from tests.gate import bundle_of

from builderd.bootstrap.review import make_scanner
from builderd.qa.port import Scanner
from builderd.review.model import ReviewLimits
from builderd.settings import Settings

LIMITS = ReviewLimits()


async def test_hit_names_file_line_and_advice(scanner: Scanner) -> None:
    scan = await scanner.scan(bundle_of({"app.py": "x = 1\n", "b.py": SUSPICIOUS}), LIMITS)
    assert scan.failure is None
    (hit,) = [hit for hit in scan.hits if hit.rule.startswith("MAL-")]
    assert (hit.path, hit.line, hit.text) == ("b.py", 2, "os.system('rm -rf /')")
    assert hit.message
    assert hit.advice
    assert hit.mark


async def test_repeated_scan_has_the_same_hits_and_name(scanner: Scanner) -> None:
    await scanner.prepare()
    await scanner.prepare()
    bundle, name = bundle_of({"b.py": SUSPICIOUS}), scanner.name
    scans = await asyncio.gather(*(scanner.scan(bundle, LIMITS) for _ in range(3)))
    assert len({(tuple(sorted(hit.mark for hit in scan.hits)), scan.failure) for scan in scans}) == 1
    assert scanner.name == name


async def test_harmless_code_has_no_hits(scanner: Scanner) -> None:
    scan = await scanner.scan(bundle_of({"app.py": "print('hello')\n"}), LIMITS)
    assert (scan.hits, scan.failure) == ((), None)
    assert scan.scanners


async def test_close_is_idempotent(scanner: Scanner) -> None:
    await scanner.close()
    await scanner.close()


SUSPICIOUS = b"import os\nos.system('rm -rf /')\n"


@pytest.fixture(params=["fake", "tripwire"])
async def scanner(request: pytest.FixtureRequest) -> AsyncIterator[Scanner]:
    made: Scanner = make_scanner(Settings())
    if request.param == "fake":
        made = fake = FakeScanner()
        fake.dislikes = {"rm -rf /": "MAL-destroys"}
    yield made
    await made.close()
