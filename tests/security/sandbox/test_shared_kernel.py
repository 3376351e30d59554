"""Shared parts of the machine, its kernel and network, that one sandbox must neither exhaust nor observe.

Each is tried with both kinds of isolation.
"""

from __future__ import annotations

import re
import sqlite3
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest
from tests.acceptance.live_service import LiveService
from tests.incus import IncusCluster
from tests.patience import patience
from tests.security.sandbox.conftest import Attacker, network_of, on_incus

from builderd.core.addresses import NOT_FOR_SANDBOXES
from builderd.engine.oci.network.allocations import bridge_name, known_instance
from builderd.engine.oci.network.network import table_name
from builderd.engine.oci.runtime.creation import MASKED

pytestmark = pytest.mark.root

PAGE = 4096
MEMORY = 0.25
GB = 1 << 30


@pytest.fixture(scope="module", params=["standard", "strong"])
def attacker(request: pytest.FixtureRequest, arena: LiveService, incus: IncusCluster | None) -> Iterator[Attacker]:
    resources = {"cpu": 1, "memory": MEMORY, "disk": 1}
    with network_of(incus):
        data = arena.create(f"shared-{request.param}", isolation=request.param, resources=resources)
    yield Attacker(arena, data)
    with network_of(incus):
        arena.call("DELETE", f"/builders/{data['uuid']}")


#: Tries each and tells which are open.
OPEN_SOCKETS = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
inet = [(family, kind, number) for family in (2, 10) for kind, number in
        ((1, 262), (2, 136), (1, 132), (5, 132), (5, 0), (6, 33), (6, 0), (2, 115), (1, 1 << 32 | 262))]
for call in (libc.socket, libc.socketpair):
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_void_p]
pair = ctypes.create_string_buffer(8)
for family, kind, number in [*inet, (16, 3, 9), (16, 3, 12), (30, 5, 0), (38, 5, 0), (40, 1, 0)]:
    if libc.socket(family, kind, number, None) >= 0:
        print("socket", family, kind, number)
for family in range(2, 46):
    if any(libc.socketpair(family, kind, 0, pair) == 0 for kind in (1, 2, 4, 5)):
        print("socketpair", family)
"""


def test_unusual_socket_families_are_refused(attacker: Attacker) -> None:
    assert attacker.python(OPEN_SOCKETS) == (0, "")


#: What programs open every day.
EVERYDAY_SOCKETS = """
import socket
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_STREAM | socket.SOCK_NONBLOCK):
    socket.socket(socket.AF_INET, kind).close()
    socket.socketpair(socket.AF_UNIX, kind)
socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP).close()
socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_UDP).close()
socket.socket(socket.AF_INET6, socket.SOCK_STREAM).close()
print(sorted(name for _, name in socket.if_nameindex()))
"""


def test_common_socket_families_are_allowed(attacker: Attacker) -> None:
    assert attacker.python(EVERYDAY_SOCKETS) == (0, "['eth0', 'lo']\n")


def test_files_describing_the_host_are_masked(attacker: Attacker) -> None:
    code, output = attacker.run(f"cat {' '.join(MASKED)} 2>/dev/null; ls -A {' '.join(MASKED)} 2>/dev/null; true")
    shown = [line for line in output.splitlines() if line and not line.startswith("/proc/")]
    own = ["BOOT_IMAGE=/vmlinuz-4.4.0-gvisor quiet"] if attacker.data["isolation"] == "strong" else []
    assert (code, shown) == (0, own)


ORDINARY = (
    "free | grep -q Mem",
    "test $(nproc) -ge 1",
    "python3 -c 'import os, platform; os.getloadavg(); os.sysconf(\"SC_PHYS_PAGES\"); platform.uname()'",
    "node -e 'const os = require(\"os\"); process.exit(os.cpus().length && os.networkInterfaces().lo ? 0 : 1)'",
    "ps aux | grep -q tini",
    "uptime",
    "df /app",
)


def test_common_programs_work_with_masked_files(attacker: Attacker) -> None:
    for command in ORDINARY:
        code, output = attacker.run(command)
        assert code == 0, (command, output)


def bridge_of(arena: LiveService) -> str:
    if on_incus(arena):
        return "builderd"
    instance = known_instance(arena.data_dir)
    assert instance
    return bridge_name(instance.id)


#: Joins as many groups as it may, on as many sockets, and waits for the reports to be sent.
JOINS = """
import socket, struct, time
sockets = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(200)]
joined = 0
for number, each in enumerate(sockets):
    for other in range(10):
        group = struct.pack("4B", 239, 1, number, other)
        try:
            each.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group + bytes(4))
            joined += 1
        except OSError:
            pass
time.sleep(1)
print(joined)
"""


def test_joined_multicast_groups_do_not_fill_the_bridge_table(attacker: Attacker, arena: LiveService) -> None:
    code, output = attacker.python(JOINS)
    # On Incus none: the table is on other members, too.
    assert (code, int(output) > 0) == (0, not on_incus(arena)), output
    bridge = bridge_of(arena)
    words = ["bridge", "mdb", "show", "dev", bridge]
    groups = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    assert groups.count("grp 239.1.") == 0
    if on_incus(arena):
        return
    folder = Path("/sys/class/net", bridge, "bridge")
    assert [(folder / name).read_text() for name in ("multicast_snooping", "multicast_router")] == ["0\n", "0\n"]


#: Asks for the description of a link again and again, 50 times with each call, and reads no answer.
UNREAD_ANSWERS = """
import socket, struct
request = struct.pack("IHHIIBxHiII", 32, 18, 1, 1, 0, 0, 0, 1, 0, 0)
kept = [socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) for _ in range(20)]
for each in kept:
    each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    for _ in range(20):
        each.send(request * 50)
print(len(kept))
"""


@pytest.mark.parametrize("attacker", ["strong"], indirect=True)
def test_gvisor_keeps_unread_netlink_answers_in_the_sandbox(attacker: Attacker, arena: LiveService) -> None:
    """Under the other runtimes they end the sandbox: ``tests/integration/oci/test_confinement.py``."""
    assert attacker.python(UNREAD_ANSWERS) == (0, "20\n")
    assert arena.builder(attacker.data["uuid"])["status"] == "running"


@pytest.mark.slow
def test_neighbour_is_served_during_a_flood_of_large_outputs(
    attacker: Attacker, arena: LiveService, neighbour: dict[str, Any]
) -> None:
    with ThreadPoolExecutor(8) as pool:
        floods = [pool.submit(attacker.run, "head -c 10000000 /dev/zero") for _ in range(8)]
        while not all(flood.done() for flood in floods):
            assert arena.visit(neighbour).status_code == 200
            assert arena.call("GET", "/builders", token=neighbour["token"]).status_code == 200
    assert all(flood.result() for flood in floods)


#: Fills sockets on loopback that nobody reads, and stays.
HOARDS = """
import resource, signal, socket
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
piece, kept = bytes(65536), []
with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
    for _ in range(90):
        near = socket.create_connection(server.getsockname())
        far = server.accept()[0]
        for end in (near, far):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
            end.setblocking(False)
            kept.append(end)
            try:
                while end.send(piece):
                    pass
            except OSError:
                pass
for _ in range(90):
    taker = socket.socket(type=socket.SOCK_DGRAM)
    taker.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    taker.bind(("127.0.0.1", 0))
    kept.append(taker)
    giver = socket.socket(type=socket.SOCK_DGRAM)
    giver.connect(taker.getsockname())
    for _ in range(400):
        giver.send(piece[:20000])
print("full", flush=True)
signal.pause()
"""


def socket_memory() -> int:
    """Return the bytes that TCP and UDP use in all network namespaces (proc_net(5))."""
    lines = Path("/proc/net/sockstat").read_text()
    return PAGE * sum(int(pages) for pages in re.findall(r"(?:TCP|UDP): .*mem (\d+)", lines))


def test_socket_buffers_count_against_memory_limit(attacker: Attacker, arena: LiveService) -> None:
    before = socket_memory()
    begin = f"echo '{HOARDS}' > /tmp/hoards.py; (python3 /tmp/hoards.py > /tmp/full 2>&1; echo killed >> /tmp/full) &"
    code, output = attacker.run(f"{begin} until [ -s /tmp/full ]; do sleep 0.1; done; cat /tmp/full")
    assert socket_memory() - before < MEMORY * GB
    # gVisor keeps them in the sandbox's own memory, for which it is killed.
    assert code == 0 or attacker.data["isolation"] == "strong", output
    arena.call("POST", f"/builders/{attacker.data['uuid']}/stop")


# The access list of Incus: tests/unit/engine/incus/test_network.py.
@pytest.mark.parametrize("incus", ["oci"], indirect=True)
def test_firewall_denies_the_webhook_networks_except_documentation(arena: LiveService) -> None:
    instance = known_instance(arena.data_dir)
    assert instance
    rules = subprocess.run(
        ["nft", "list", "set", "inet", table_name(instance.id), "near"], check=True, capture_output=True, text=True
    ).stdout
    elements = re.findall(r"\d+\.\d+\.\d+\.\d+(?:/\d+)?", rules)
    refused = [IPv4Network(element) for element in elements]
    assert all(any(network.subnet_of(wider) for wider in refused) for network in NOT_FOR_SANDBOXES)
    assert all(any(network.subnet_of(wider) for wider in NOT_FOR_SANDBOXES) for network in refused)


BURNS = "import time; end = time.time() + 3\nwhile time.time() < end: pass\nraise SystemExit(1)"


def test_failing_redeploys_are_billed(arena: LiveService, neighbour: dict[str, Any]) -> None:
    token = neighbour["token"]
    answer = arena.call("PUT", f"/builders/{neighbour['uuid']}", token=token, json={"files": {"main.py": BURNS}})
    assert answer.status_code == 422, answer.text
    with sqlite3.connect(arena.data_dir / "builderd.db") as database:
        query = "SELECT started_at, ended_at FROM ledger WHERE billing = 'trial' AND builder_id = ?"
        ((start, end),) = database.execute(query, (neighbour["uuid"],)).fetchall()
    assert 3 <= (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds() < patience(60)
    assert arena.visit(neighbour).text == "still here"
