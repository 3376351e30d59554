"""Routes of this machine to apps on other members: those of a service that works, and those of a standby."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from builderd.adapters.engines.incus import network
from builderd.adapters.engines.incus.network import Routes
from builderd.domain.errors import EngineUnavailable


async def address_of(member: str) -> str:
    return {"node1": "10.98.0.11", "node2": "10.98.0.12"}[member]


async def test_next_hop_is_known_for_apps_of_other_members_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = "10.99.0.20 via 10.98.0.12 dev eth0\n10.99.0.29 via 10.98.0.13 dev eth0 onlink\n"
    ran: list[str] = []

    async def ip(*words: str, lines: Iterable[str] = ()) -> str:
        ran.append("\n".join(lines) or " ".join(words))
        return shown if words[1] == "show" else ""

    monkeypatch.setattr(network, "_ip", ip)
    made = Routes("node1", address_of)
    await made.sync({"10.99.0.20": "node2", "10.99.0.21": "node1"})
    assert "route del 10.99.0.29/32 proto 152" in ran
    assert made._known == {"10.99.0.20": "10.98.0.12"}
    await made.add("10.99.0.22", "node2")
    await made.remove("10.99.0.20")
    assert made._known == {"10.99.0.22": "10.98.0.12"}


@pytest.fixture
def slow_ip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program ``ip`` that does not end; the file that it writes its pid into."""
    program, pid = tmp_path / "ip", tmp_path / "pid"
    program.write_text(f"#!/bin/sh\necho $$ >{pid}.new && mv {pid}.new {pid} && exec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return pid


async def test_cancelled_change_of_routes_goes_on_no_more(slow_ip: Path) -> None:
    """Routes would be added after they were removed."""
    putting = asyncio.create_task(network._ip("route", "show"))
    async with asyncio.timeout(30):
        while not slow_ip.exists():
            await asyncio.sleep(0.01)
    putting.cancel()
    await asyncio.wait({putting})
    assert not Path(f"/proc/{slow_ip.read_text().strip()}").exists()


async def test_program_that_hangs_or_is_missing_is_an_error_of_the_engine(
    slow_ip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "IP_SECONDS", 0.3)
    with pytest.raises(EngineUnavailable, match="has not ended within"):
        await network._ip("route", "show")
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    with pytest.raises(EngineUnavailable, match="cannot be run: No such file"):
        await network._ip("route", "show")
