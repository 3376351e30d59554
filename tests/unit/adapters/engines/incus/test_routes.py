"""Routes of this machine to apps on other members: those of a service that works, and those of a standby."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from builderd.adapters.engines.incus import routes
from builderd.adapters.engines.incus.routes import Routes
from builderd.domain.errors import EngineUnavailable


async def address_of(member: str) -> str:
    return {"node1": "10.98.0.11", "node2": "10.98.0.12"}[member]


async def test_next_hop_is_known_for_apps_of_other_members_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = "10.99.0.20 via 10.98.0.12 dev eth0\n10.99.0.29 via 10.98.0.13 dev eth0 onlink\n"
    ran: list[str] = []

    async def ip(*words: str, lines: Iterable[str] = ()) -> str:
        ran.append("\n".join(lines) or " ".join(words))
        return shown if words[1] == "show" else ""

    monkeypatch.setattr(routes, "_ip", ip)
    made = Routes("node1", address_of)
    await made.sync({"10.99.0.20": "node2", "10.99.0.21": "node1"})
    assert ran[-1] == "route flush proto 153\nrule del pref 15300 iif lo lookup 15300", "what it had as a standby"
    assert "route del 10.99.0.29/32 proto 152" in ran
    assert [made.next_hop(f"10.99.0.{last}") for last in (20, 21, 29)] == ["10.98.0.12", "", ""]
    await made.add("10.99.0.22", "node2")
    await made.remove("10.99.0.20")
    assert [made.next_hop(f"10.99.0.{last}") for last in (20, 22)] == ["", "10.98.0.12"]


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
    putting = asyncio.create_task(routes.put_standby_routes({"10.99.0.20": "10.98.0.12"}))
    async with asyncio.timeout(30):
        while not slow_ip.exists():
            await asyncio.sleep(0.01)
    putting.cancel()
    await asyncio.wait({putting})
    assert not Path(f"/proc/{slow_ip.read_text().strip()}").exists()


async def test_program_that_hangs_or_is_missing_is_an_error_of_the_engine(
    slow_ip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "IP_SECONDS", 0.3)
    with pytest.raises(EngineUnavailable, match="has not ended within"):
        await routes.put_standby_routes({})
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    with pytest.raises(EngineUnavailable, match="cannot be run: No such file"):
        await routes.put_standby_routes({})


#: In a network of its own: an interface to members, and routes of a service that works.
SCRIPT = """
import asyncio, subprocess
from builderd.adapters.engines.incus.routes import put_standby_routes
def ip(*words): return subprocess.run(("ip", *words), capture_output=True, text=True, check=True).stdout
ip("link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
ip("address", "add", "10.98.0.11/24", "dev", "eth0")
ip("link", "add", "br0", "type", "bridge")
ip("address", "add", "10.99.0.1/16", "dev", "br0")
for name in ("eth0", "eth1", "br0"): ip("link", "set", name, "up")
ip("route", "add", "10.97.0.1/32", "via", "10.98.0.13", "proto", "152")
def standby(): return ip("route", "show", "table", "all", "proto", "153")
async def run():
    await put_standby_routes({})
    hops = {f"10.99.{n // 250}.{n % 250}": "10.98.0.12" for n in range(10, 1010)}
    print(*await put_standby_routes({"10.99.9.9": "192.0.2.1", **hops}))
    print(len(standby().splitlines()), ip("route", "get", "10.99.3.3").split()[2])
    # Of an earlier version, in the table of all.
    ip("route", "add", "10.99.3.3/32", "via", "10.98.0.14", "proto", "153")
    # What comes from another member for an app of this one is led to the bridge.
    for name in ("eth0", "br0"): open(f"/proc/sys/net/ipv4/conf/{name}/forwarding", "w").write("1")
    passed = ip("route", "get", "10.99.0.10", "from", "10.98.0.12", "iif", "eth0")
    print(ip("route", "get", "10.99.0.10").split()[2], "dev br0" in passed)
    # As a restarted network daemon does, and an uplink without a carrier.
    ip("rule", "del", "pref", "15300")
    await put_standby_routes({"10.99.0.10": "10.98.0.13"})
    assert ip("route", "get", "10.99.0.10").split()[2] == "10.98.0.13"
    ip("link", "set", "eth1", "down")
    assert "linkdown" in standby(), standby()
    print(standby().strip())
    await put_standby_routes({})
    print(repr(standby()), ip("route", "show", "proto", "152").split()[0], repr(ip("rule", "show", "pref", "15300")))
asyncio.run(run())
"""


@pytest.mark.root
def test_standby_has_exactly_the_routes_of_its_list_and_leaves_others() -> None:
    """One member that cannot be reached keeps no other route away."""
    unshare = shutil.which("unshare")
    assert unshare is not None
    source = str(Path(__file__).parents[5] / "src")
    argv = (unshare, "--net", sys.executable, "-c", SCRIPT)
    env = {"PYTHONPATH": source, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env=env)
    lost, first, led, second, third = done.stdout.splitlines()
    assert lost == "10.99.9.9"
    assert first == "1000 10.98.0.12"
    assert led == "10.98.0.12 True"
    assert second.split()[:5] == ["10.99.0.10", "via", "10.98.0.13", "dev", "eth0"]
    assert third == "'' 10.97.0.1 ''"
