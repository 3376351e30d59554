"""Rows that a wrong clock left in the future are named and mended, while the service is stopped."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from builderd.adapters.clocks.system import SystemClock
from builderd.bootstrap.data_directory import lock
from builderd.bootstrap.database import store
from builderd.bootstrap.machine import describe_clock, repair_clock
from builderd.domain.errors import EngineUnavailable
from builderd.domain.ids import TenantId, new_id
from builderd.domain.tokens import Tenant
from builderd.settings import Settings

YEAR = timedelta(days=365)


async def test_rows_in_the_future_are_named_and_mended(tmp_path: Path) -> None:
    settings, wrong = Settings(data_dir=tmp_path), datetime.now(UTC) + YEAR
    tenant = Tenant(TenantId(new_id()), "acme", wrong)
    async with store(settings) as opened:
        await opened.write(lambda uow: uow.tenants.add(tenant))
    memory = tmp_path / "clock.json"
    SystemClock(memory)
    memory.write_text(json.dumps({**json.loads(memory.read_text()), "latest": int(wrong.timestamp() * 1e9)}))
    said = "\n".join(await describe_clock(settings))
    assert "rows may lie in the future" in said
    assert "1 times lie in the future (tenants.created_at)" in said
    with lock(tmp_path), pytest.raises(EngineUnavailable, match="stop it first"):
        await repair_clock(settings, lambda *_: None)
    assert await repair_clock(settings, lambda *_: None) == {"tenants.created_at": 1}
    assert await describe_clock(settings) == []
