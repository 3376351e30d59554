"""The upload stores under the contract tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from builderd.adapters.fakes.uploads import FakeUploads
from builderd.adapters.uploads.local import LocalUploads
from builderd.ports.uploads import Uploads


@pytest.fixture(params=["fake", "local"])
def uploads(request: pytest.FixtureRequest, tmp_path: Path) -> Uploads:
    return FakeUploads() if request.param == "fake" else LocalUploads(tmp_path / "uploads")
