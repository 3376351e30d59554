"""A service that listens."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.threaded_service import Running, threaded_service


@pytest.fixture
def running() -> Iterator[Running]:
    with threaded_service() as started:
        yield started
