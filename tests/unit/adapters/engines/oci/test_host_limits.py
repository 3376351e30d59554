"""There is enough for all sandboxes of what the kernel counts for root, and nothing is made less."""

from __future__ import annotations

from pathlib import Path

import pytest

from builderd.adapters.engines.oci import exits
from builderd.adapters.engines.oci.exits import Exits
from builderd.adapters.engines.oci.host_limits import raise_host_limits
from builderd.adapters.engines.oci.launcher import INOTIFY
from builderd.adapters.engines.oci.slots import MAX_SLOTS
from builderd.domain.errors import EngineUnavailable


def test_each_of_the_sandboxes_can_have_its_own_and_what_is_more_stays(tmp_path: Path) -> None:
    few, many = tmp_path / "max_user_instances", tmp_path / "max_user_watches"
    few.write_text("128\n")
    many.write_text("2147483647\n")
    for _ in range(2):
        raise_host_limits(tmp_path)
        assert int(few.read_text()) > MAX_SLOTS * INOTIFY["max_inotify_instances"]
        assert many.read_text() == "2147483647\n"


def test_where_the_host_forbids_it_the_service_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    raise_host_limits(tmp_path)
    assert "can take all of" in caplog.text


async def test_where_none_is_left_the_engine_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(_: int) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(exits, "_checked", none_left)
    with pytest.raises(EngineUnavailable, match=r"Too many open files\. See fs\.inotify\.max_user_instances"):
        Exits(tmp_path, lambda _: False).open()
