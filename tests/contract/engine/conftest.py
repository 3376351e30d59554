"""The engines that are held to the contract."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.contract.engine.apps import APPS, COMMANDS

from builderd.adapters.engines.oci.engine import OciEngine
from builderd.adapters.engines.oci.machine import OciSettings
from builderd.adapters.engines.oci.store import StoreOptions
from builderd.adapters.fakes.engine import FakeEngine
from builderd.ports.engine import Engine


@pytest.fixture(params=["fake", pytest.param("oci", marks=pytest.mark.root)])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    if request.param == "fake":
        yield await make_fake()
        return
    oci = OciEngine(request.getfixturevalue("oci_settings"))
    await oci.prepare(lambda line: None)
    yield oci
    await oci.prepare(lambda line: None)
    for report in await oci.list_sandboxes():
        await oci.stop(report.id, 0)
        await oci.remove(report.id)
    await oci.close()


async def make_fake() -> FakeEngine:
    fake = FakeEngine()
    for app in APPS:
        fake.behave(app.entrypoint, app.behaviour)
    for command in COMMANDS:
        fake.answer(command.text, command.answer)
    await fake.prepare(lambda line: None)
    return fake


@pytest.fixture(scope="session")
def oci_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OciSettings]:
    """One data directory for all tests; everything of it is taken down at the end."""
    data_dir: Path = tmp_path_factory.mktemp("engine")
    settings = OciSettings(data_dir, inside_port=8080, store=StoreOptions(overcommit=100))
    yield settings
    asyncio.run(OciEngine(settings).down())
