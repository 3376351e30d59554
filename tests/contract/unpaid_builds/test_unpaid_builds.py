"""Contract of the port for unpaid builds."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.fakes.unpaid_builds import FakeUnpaidBuilds

from builderd.adapters.unpaid_builds.local import LocalUnpaidBuilds
from builderd.ports.unpaid_builds import UnpaidBuilds


@pytest.fixture(params=["fake", "local"])
def unpaid(request: pytest.FixtureRequest, tmp_path: Path) -> UnpaidBuilds:
    return FakeUnpaidBuilds() if request.param == "fake" else LocalUnpaidBuilds(tmp_path / "data/unpaid")


async def test_builds_are_kept_until_they_are_removed(unpaid: UnpaidBuilds) -> None:
    assert list(await unpaid.all()) == []
    await unpaid.remove("never-added")
    for build in ("a", "b", "a"):
        await unpaid.add(build)
    assert sorted(await unpaid.all()) == ["a", "b"]
    await unpaid.remove("a")
    assert list(await unpaid.all()) == ["b"]


async def test_files_outlive_the_process_and_are_readable_by_root_alone(tmp_path: Path) -> None:
    await LocalUnpaidBuilds(tmp_path / "unpaid").add("a")
    assert list(await LocalUnpaidBuilds(tmp_path / "unpaid").all()) == ["a"]
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "unpaid", tmp_path / "unpaid/a")] == [0o700, 0o600]
