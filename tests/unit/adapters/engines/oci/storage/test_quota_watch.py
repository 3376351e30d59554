"""The watch over a build's quotas goes on while they cannot be read, and says so once."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from builderd.adapters.engines.oci.storage import quota_watch
from builderd.adapters.engines.oci.storage.quota_watch import QuotaWatch
from builderd.adapters.engines.oci.storage.quotas import Quota


async def test_failure_to_read_is_logged_once_until_it_changes(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quota_watch, "INTERVAL", 0.001)
    # Both groups are read between the last two failures.
    first, second = OSError(5, "a"), OSError(6, "b")
    errors: list[Exception | None] = [*[first] * 4, *[second] * 3, None, None, *[second] * 2]
    count, read = len(errors), 0

    def limit_of(group: int) -> int:
        nonlocal read
        read += 1
        if errors and (error := errors.pop(0)):
            raise error
        return 0

    quota: Any = SimpleNamespace(group=lambda path: 1, total=2, limit_of=limit_of)
    with caplog.at_level(logging.WARNING), QuotaWatch(cast("Quota", quota), [Path("/x")]):
        async with asyncio.timeout(20):
            while errors or read <= count:
                await asyncio.sleep(0.005)
    told = [record.getMessage() for record in caplog.records if "quota not read" in record.getMessage()]
    assert [text.rpartition("error=")[2] for text in told] == ["[Errno 5] a", "[Errno 6] b", "[Errno 6] b"]
