"""The real engine, and a secret of the host's that nothing may lead to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.engines import prepared, settings_until_down

from builderd.engine.oci.engine.engine import OciEngine
from builderd.engine.port import EngineOptions


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineOptions]:
    with settings_until_down(tmp_path_factory.mktemp("engine")) as found:
        yield found


@pytest.fixture
async def engine(settings: EngineOptions) -> AsyncIterator[OciEngine]:
    async with prepared(settings) as engine:
        yield engine


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of the host with a file that anybody may read and write."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(0o755)
    (tmp_path / "secret").write_text("canary")
    (tmp_path / "secret").chmod(0o666)
    tmp_path.chmod(0o777)
    return tmp_path
