"""The bundle stores that are held to the contract."""

from __future__ import annotations

from pathlib import Path

import pytest

from builderd.adapters.bundles.local import LocalBundles
from builderd.adapters.fakes.bundles import FakeBundles
from builderd.ports.bundles import Bundles


@pytest.fixture(params=["fake", "local"])
def bundles(request: pytest.FixtureRequest, tmp_path: Path) -> Bundles:
    return FakeBundles() if request.param == "fake" else LocalBundles(tmp_path / "bundles")
