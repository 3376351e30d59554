"""A change of the port for standbys that fails is taken back."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from builderd.adapters.previews.haproxy.options import ProxyOptions, Receiving
from builderd.adapters.previews.haproxy.previews import HaproxyPreviews
from builderd.domain.errors import EngineUnavailable


@pytest.mark.parametrize("error", [EngineUnavailable("x"), OSError(28, "x"), asyncio.CancelledError()])
async def test_failed_or_cancelled_change_is_tried_again(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    previews, wanted, started = HaproxyPreviews(tmp_path, ProxyOptions()), Receiving("127.0.0.1", 1, "ab"), []

    async def start() -> None:
        started.append(previews.receiving)
        if len(started) == 1:
            raise error

    previews._open_map = cast("Any", object())
    monkeypatch.setattr(previews, "_start", start)
    with pytest.raises(type(error)):
        await previews.receive(wanted, ["127.0.0.1"])
    assert previews.receiving is None
    await previews.receive(wanted, ["127.0.0.1"])
    assert started == [wanted, wanted]
