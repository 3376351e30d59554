"""The engines that are held to the contract."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.contract.engine.apps import APPS, COMMANDS
from tests.engines import RuncEngine, StrongEngine, prepared, settings_in
from tests.fakes.engine import FakeEngine
from tests.incus import prepared_incus

from builderd.engine.oci.engine.engine import OciEngine
from builderd.engine.port import Engine, EngineOptions

REAL = {"crun": OciEngine, "runc": RuncEngine, "gvisor": StrongEngine}


#: Apps run by crun unless asked otherwise: script/soak runs the contract of the others. Every run has gVisor in
#: tests/acceptance/test_isolation, and Incus in the acceptance tests of ``EVERY_RUN`` there.
SELDOM = [pytest.mark.root, pytest.mark.slow]
MARKS = {"crun": [pytest.mark.root], "runc": SELDOM, "gvisor": SELDOM}
#: Clusters of one and of three members on which the contract runs.
INCUS = ("incus", "incus3")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests on every engine."""
    if "engine" not in metafunc.fixturenames:
        return
    marks = {**MARKS, **{kind: [*SELDOM, pytest.mark.incus] for kind in INCUS}}
    kinds = [pytest.param(name, marks=of) for name, of in marks.items()]
    metafunc.parametrize("engine", ["fake", *kinds], indirect=True)


@pytest.fixture
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    if request.param == "fake":
        yield await make_fake()
        return
    if request.param in INCUS:
        cluster = request.getfixturevalue(f"{request.param}_cluster")
        async with prepared_incus(cluster, request.getfixturevalue("incus_data")) as incus:
            yield incus
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


@pytest.fixture(scope="session")
def incus_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("incus")
