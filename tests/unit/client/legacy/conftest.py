"""The client of earlier releases, connected."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.threaded_service import Running

from builderd.client.legacy import Client


@pytest.fixture
def client(running: Running) -> Iterator[Client]:
    with Client(running.url, running.service.write) as opened:
        yield opened
