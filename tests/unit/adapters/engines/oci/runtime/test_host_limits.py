"""Kernel limits of the host are raised for all sandboxes, and never lowered."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import AsyncMock

import pytest

from builderd.adapters.engines.oci.network.allocations import MAX_SLOTS
from builderd.adapters.engines.oci.runtime import exits
from builderd.adapters.engines.oci.runtime.attach import INOTIFY
from builderd.adapters.engines.oci.runtime.exits import Exits
from builderd.adapters.engines.oci.runtime.host_limits import (
    LEAST,
    SOCKET_POOLS,
    raise_host_limits,
    raise_socket_pools,
    socket_pool,
)
from builderd.domain.errors import EngineUnavailable


def test_each_sandbox_can_have_its_own() -> None:
    assert LEAST["fs/inotify/max_user_instances"] > MAX_SLOTS * INOTIFY["max_inotify_instances"]
    assert LEAST["fs/inotify/max_user_watches"] > MAX_SLOTS * INOTIFY["max_inotify_watches"]
    assert LEAST["net/ipv4/neigh/default/gc_thresh3"] > 2 * MAX_SLOTS


def test_lower_host_limits_are_raised_and_higher_ones_kept(tmp_path: Path) -> None:
    few, many = tmp_path / "few", tmp_path / "many"
    few.write_text("128\n")
    many.write_text("65536\n")
    for _ in range(2):
        raise_host_limits(tmp_path, {"few": 8192, "many": 8192})
        assert (few.read_text(), many.read_text()) == ("8192", "65536\n")


def test_forbidden_host_limit_change_is_tolerated(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    raise_host_limits(tmp_path)
    assert caplog.text.count("kernel limit not raised") == len(LEAST)


def test_the_pools_of_socket_buffers_are_raised_to_half_of_the_memory(tmp_path: Path) -> None:
    tcp, udp = (tmp_path / name for name in SOCKET_POOLS)
    tcp.parent.mkdir(parents=True)
    tcp.write_text("287901\t383868\t575802\n")
    udp.write_text("1\t2\t9000000\n")
    for _ in range(2):
        raise_socket_pools(24 << 30, tmp_path)
    assert socket_pool(SOCKET_POOLS[0], tmp_path) == 12 << 30
    low, pressure, most = (int(number) for number in tcp.read_text().split())
    assert low < pressure < most
    assert udp.read_text() == "1\t2\t9000000\n"


async def test_exhausted_inotify_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(_: int, __: str) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(exits, "check", none_left)
    with pytest.raises(EngineUnavailable, match=r"Too many open files\. See fs\.inotify\.max_user_instances"):
        Exits(tmp_path, lambda _: False, AsyncMock()).open()
