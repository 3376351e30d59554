"""An attempt to prepare the engine that fails lets go of all that it opened, so that the next one can succeed."""

from __future__ import annotations

import asyncio
import gc
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.contract.engine import apps
from tests.engines import ENGINE_TIMEOUT, make_spec, prepared

from builderd.adapters.engines.oci.engine.engine import OciEngine
from builderd.adapters.engines.oci.network.network import Network
from builderd.adapters.engines.oci.storage.layers import Layers
from builderd.domain.errors import EngineUnavailable
from builderd.domain.sandboxes import SandboxState
from builderd.ports.engine import EngineOptions

pytestmark = pytest.mark.root


def quiet(line: str) -> None:
    """Progress that nobody reads."""


def opened() -> tuple[int, int]:
    """Descriptors and tasks."""
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir())), len(asyncio.all_tasks())


async def until_let_go(before: tuple[int, int]) -> None:
    """A beat of the heart may be half-way written."""
    async with asyncio.timeout(ENGINE_TIMEOUT):
        while any(now > then for now, then in zip(opened(), before, strict=True)):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("part", [Network, Layers])
async def test_preparing_succeeds_on_retry(
    settings: EngineOptions, monkeypatch: pytest.MonkeyPatch, part: type[Network] | type[Layers]
) -> None:
    def fail(*_: object) -> None:
        raise EngineUnavailable("not now")

    async with prepared(settings) as engine:
        spec = await make_spec(engine, apps.SILENT)
        await engine.sandboxes.start(spec)
        await engine.close()
        await asyncio.sleep(0)  # what was cancelled ends
        before = opened()
        with monkeypatch.context() as patch:
            patch.setattr(part, "open", fail)
            with pytest.raises(EngineUnavailable, match="not now"):
                await engine.prepare(quiet)
        await until_let_go(before)
        await engine.prepare(quiet)
        assert (await engine.sandboxes.report(spec.id)).state is SandboxState.RUNNING


async def test_cancelled_preparing_leaves_nothing_open(
    settings: EngineOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on, may_end = threading.Event(), threading.Event()

    def wait(*_: Any) -> None:
        goes_on.set()
        may_end.wait(ENGINE_TIMEOUT)

    engine = OciEngine(settings)
    with monkeypatch.context() as patch:
        patch.setattr(Network, "open", wait)
        preparing = asyncio.create_task(engine.prepare(quiet))
        await asyncio.to_thread(goes_on.wait)
        preparing.cancel()
        await asyncio.sleep(0.05)
        ended_first = preparing.done()
        may_end.set()
        assert not ended_first, "its thread goes on"
        with pytest.raises(asyncio.CancelledError):
            await preparing
    async with prepared(settings):
        pass
