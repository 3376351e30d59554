"""The engines that are held to the contract."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from tests.contract.engine.apps import APPS, COMMANDS
from tests.engines import RuncEngine, StrongEngine, prepared, settings_in

from builderd.adapters.engines.oci.engine.engine import OciEngine
from builderd.adapters.fakes.engine import FakeEngine
from builderd.ports.engine import Engine, EngineOptions

REAL = {"crun": OciEngine, "runc": RuncEngine, "gvisor": StrongEngine}


#: Apps run by crun unless asked otherwise: script/soak runs the contract of the others. Every run has gVisor in
#: tests/acceptance/test_isolation.
SELDOM = [pytest.mark.root, pytest.mark.slow]
MARKS = {"crun": [pytest.mark.root], "runc": SELDOM, "gvisor": SELDOM}


@pytest.fixture(params=["fake", *(pytest.param(name, marks=marks) for name, marks in MARKS.items())])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    if request.param == "fake":
        yield await make_fake()
        return
    async with prepared(request.getfixturevalue("oci_settings"), REAL[request.param]) as oci:
        yield oci


async def make_fake() -> FakeEngine:
    fake = FakeEngine()
    for app in APPS:
        fake.behave(app.entrypoint, app.behaviour)
    for command in COMMANDS:
        fake.answer(command.text, command.answer)
    await fake.prepare(lambda line: None)
    return fake


@pytest.fixture(scope="session")
def oci_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineOptions]:
    """One data directory for all tests; everything of it is taken down at the end."""
    settings = settings_in(tmp_path_factory.mktemp("engine"))
    yield settings
    asyncio.run(OciEngine(settings).down())
