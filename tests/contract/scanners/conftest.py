"""The scanners that are held to the contract."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tests.fakes.scanners import FakeScanner

from builderd.bootstrap.review import make_scanner
from builderd.ports.scanners import Scanner
from builderd.settings import Settings

SUSPICIOUS = b"import os\nos.system('rm -rf /')\n"


@pytest.fixture(params=["fake", "tripwire"])
async def scanner(request: pytest.FixtureRequest) -> AsyncIterator[Scanner]:
    made: Scanner = make_scanner(Settings())
    if request.param == "fake":
        made = fake = FakeScanner()
        fake.dislikes = {"rm -rf /": "MAL-destroys"}
    yield made
    await made.close()
