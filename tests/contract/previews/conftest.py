"""The previews that the contract is tested on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from tests.fakes.previews import FakePreviews
from tests.previews.proxy import free_port

from builderd.previews.haproxy.options import ProxyOptions
from builderd.previews.haproxy.previews import HaproxyPreviews
from builderd.previews.port import Previews


@pytest.fixture(params=["fake", pytest.param("haproxy", marks=pytest.mark.haproxy)])
async def previews(request: pytest.FixtureRequest) -> AsyncIterator[Previews]:
    with TemporaryDirectory(prefix="previews-") as directory:
        made = FakePreviews() if request.param == "fake" else _haproxy(Path(directory))
        await made.start()
        yield made
        await made.down()


def _haproxy(directory: Path) -> Previews:
    return HaproxyPreviews(directory / "p", ProxyOptions(port=free_port(), threads=1))
