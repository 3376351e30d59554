"""Egress of a sandbox, in a small network beside the host: an internet, and nearer networks."""

from __future__ import annotations

import asyncio
import errno
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from tests.contract.engine import apps
from tests.contract.engine.apps import PORT
from tests.engines import ENGINE_TIMEOUT, execute, log_text, make_spec, prepared, until_listening
from tests.outside import outside

from builderd.core.ids import SandboxId
from builderd.engine.oci.engine.engine import OciEngine
from builderd.engine.oci.network.network import FLOWS
from builderd.engine.port import EngineOptions
from builderd.versions.model import Isolation

pytestmark = pytest.mark.root

#: Each is an address of the world that a test makes, and routed there.
INTERNET, ALLOWED, DENIED = "192.0.3.10", "10.77.0.1", "192.0.3.99"
NEAR = [
    "169.254.169.254",
    "10.77.0.2",
    "172.16.5.5",
    "192.168.77.7",
    "100.64.1.1",
    "198.18.0.9",
    "168.63.129.16",
    "192.0.0.8",
]
HOST_PORT, INSIDE_PORT = 18999, 18998
SERVER = """
import socket, sys, threading
def serve(address, port):
    with socket.create_server((address, port)) as server:
        print("up", flush=True)
        while True:
            server.accept()[0].close()
for address, port in zip(sys.argv[1::2], map(int, sys.argv[2::2])):
    threading.Thread(target=serve, args=(address, port)).start()
"""
PROBE = """python3 - <<'END'
import socket
from concurrent.futures import ThreadPoolExecutor
def reach(address):
    try:
        socket.create_connection(address, timeout=1).close()
        return True
    except OSError:
        return False
addresses = %r
with ThreadPoolExecutor(20) as pool:
    for address, reached in zip(addresses, pool.map(reach, addresses)):
        if reached:
            print("reached", *address)
END"""


def sh(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True)


def serve(prefix: list[str], *addresses: tuple[str, int]) -> subprocess.Popen[str]:
    arguments = [str(word) for address in addresses for word in address]
    server = subprocess.Popen([*prefix, "python3", "-c", SERVER, *arguments], stdout=subprocess.PIPE, text=True)
    assert server.stdout
    for _ in addresses:
        server.stdout.readline()
    return server


@pytest.fixture
def world() -> Iterator[None]:
    """A namespace behind a link of the host that has all these addresses and serves port 80."""
    servers: list[subprocess.Popen[str]] = []
    with outside(INTERNET, ALLOWED, DENIED, *NEAR, name="bd-world", link="192.0.3.0") as there:
        try:
            servers.append(serve(["ip", "netns", "exec", there.namespace], ("0.0.0.0", 80)))
            servers.append(serve([], ("0.0.0.0", HOST_PORT)))
            yield
        finally:
            for server in servers:
                server.kill()
                server.wait()


@pytest.fixture
def policy(settings: EngineOptions) -> EngineOptions:
    return replace(
        settings,
        inside_port=INSIDE_PORT,
        allow=(IPv4Network(f"{ALLOWED}/32"),),
        deny=(IPv4Network(f"{DENIED}/32"),),
    )


async def reached(engine: OciEngine, sandbox: SandboxId, *addresses: tuple[str, int]) -> set[str]:
    result = await execute(engine, sandbox, PROBE % (list(addresses),), ENGINE_TIMEOUT, 10_000)
    assert result.exit_code == 0, result.output
    return {line.split()[1] for line in result.output.splitlines()}


@pytest.mark.parametrize("isolation", Isolation)
async def test_a_sandbox_reaches_the_internet_and_nothing_nearer(
    world: None, policy: EngineOptions, isolation: Isolation
) -> None:
    async with prepared(policy) as engine:
        spec = await make_spec(engine, apps.SERVER, isolation=isolation)
        sibling = await make_spec(engine, apps.SERVER)
        for each in (spec, sibling):
            await engine.sandboxes.start(each)
            await until_listening(engine, each.id)
        sibling_ip = (await engine.sandboxes.report(sibling.id)).ip
        assert sibling_ip
        targets = [(address, 80) for address in (INTERNET, ALLOWED, DENIED, *NEAR)]
        host = [(address, HOST_PORT) for address in (engine.sandboxes.gateway, "192.0.3.1")]
        assert await reached(engine, spec.id, *targets, *host, (sibling_ip, PORT)) == {INTERNET, ALLOWED}


async def test_a_sandbox_reaches_the_service_at_its_gateway(policy: EngineOptions) -> None:
    async with prepared(policy) as engine:
        spec = await make_spec(engine, apps.SERVER)
        await engine.sandboxes.start(spec)
        server = serve([], (engine.sandboxes.gateway, INSIDE_PORT))
        try:
            assert await reached(engine, spec.id, (engine.sandboxes.gateway, INSIDE_PORT)) == {engine.sandboxes.gateway}
        finally:
            server.kill()
            server.wait()


async def test_a_secluded_sandbox_answers_the_host_and_reaches_nothing(world: None, policy: EngineOptions) -> None:
    async with prepared(policy) as engine:
        spec = await make_spec(engine, apps.SERVER, egress=False)
        await engine.sandboxes.start(spec)
        await until_listening(engine, spec.id)
        ip = (await engine.sandboxes.report(spec.id)).ip
        assert ip
        server = serve([], (engine.sandboxes.gateway, INSIDE_PORT))
        try:
            sh("curl", "--silent", "--fail", "--max-time", "10", f"http://{ip}:{PORT}/")
            resolver = ("10.255.255.53", 53)
            targets = [
                (INTERNET, 80),
                (ALLOWED, 80),
                (engine.sandboxes.gateway, INSIDE_PORT),
                (engine.sandboxes.gateway, HOST_PORT),
                resolver,
            ]
            assert await reached(engine, spec.id, *targets) == set()
        finally:
            server.kill()
            server.wait()


FLOOD = f"""python3 - <<'END'
import socket
flood = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for port in range(1024, 1024 + 4 * {FLOWS}):
    flood.sendto(b"x", ("{INTERNET}", port))
END"""


def tracked(ip: str) -> int:
    """Return the number of tracked flows from this address."""
    flows = Path("/proc/net/nf_conntrack").read_text().splitlines()
    return sum(next(word for word in flow.split() if word.startswith("src=")) == f"src={ip}" for flow in flows)


async def test_a_sandbox_cannot_use_up_the_connections_of_all(world: None, policy: EngineOptions) -> None:
    async with prepared(policy) as engine:
        attacker, neighbour = await make_spec(engine, apps.SERVER), await make_spec(engine, apps.SILENT)
        for each in (attacker, neighbour):
            await engine.sandboxes.start(each)
        await until_listening(engine, attacker.id)
        ip = (await engine.sandboxes.report(attacker.id)).ip
        assert ip
        assert await reached(engine, attacker.id, (INTERNET, 80)) == {INTERNET}
        assert (await execute(engine, attacker.id, FLOOD, ENGINE_TIMEOUT, 1000)).exit_code == 0
        # What has ended counts no more, and is tracked for a while.
        assert FLOWS / 2 < tracked(ip) < FLOWS * 1.1
        assert await reached(engine, attacker.id, (INTERNET, 80)) == set()
        assert await reached(engine, neighbour.id, (INTERNET, 80)) == {INTERNET}
        # Its visitors begin the flows by which they come.
        sh("curl", "--silent", "--fail", "--max-time", "10", f"http://{ip}:{PORT}/")


#: Binds to the link and asks for no gateway, if told so.
CALLS_ALL = """python3 - <<'END'
import socket
caller = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
if %r:
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_DONTROUTE, 1)
for address in %r:
    caller.sendto(b"x", (address, 9))
END
cat /proc/net/arp"""


def neighbours() -> int:
    """Return the number of neighbours of the kernel, in all network namespaces."""
    return int(Path("/proc/net/stat/arp_cache").read_text().splitlines()[1].split()[0], 16)


@pytest.mark.parametrize("around", [False, True], ids=["plainly", "around its gateway"])
async def test_a_sandbox_has_no_neighbour_but_its_gateway(engine: OciEngine, around: bool) -> None:
    spec = await make_spec(engine, apps.SILENT)
    await engine.sandboxes.start(spec)
    siblings = [str(engine._here.addresses.subnet[number]) for number in range(1000, 1200)]
    before = neighbours()
    result = await execute(engine, spec.id, CALLS_ALL % (around, siblings), ENGINE_TIMEOUT, 100_000)
    assert result.exit_code == 0, result.output
    own = {line.split()[0] for line in result.output.splitlines()[1:]}
    assert own <= {engine.sandboxes.gateway}
    assert neighbours() < before + len(siblings) / 2, "other tests have sandboxes too"


#: Whoever said hello is sent something for as long as this runs.
STALKER = f"""
import socket, time
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
    server.bind(("{INTERNET}", 7000))
    print("up", flush=True)
    peer = server.recvfrom(100)[1]
    while True:
        server.sendto(b"still there?", peer)
        time.sleep(0.05)
"""
#: The whole program of an app that says hello first, or only listens.
HEARS = """python3 -u -c '
import socket
mine = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
mine.bind(("0.0.0.0", 7001))
if %r: mine.sendto(b"hello", ("%s", 7000))
print("begun")
print(mine.recv(100).decode())
while True: mine.recv(100)'"""


async def test_old_flows_do_not_reach_the_next_sandbox_at_an_address(world: None, policy: EngineOptions) -> None:
    words = ["ip", "netns", "exec", "bd-world", "python3", "-c", STALKER]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as stalker:
        try:
            assert stalker.stdout
            stalker.stdout.readline()
            async with prepared(policy) as engine:
                caller, heir = await make_spec(engine, apps.SILENT), await make_spec(engine, apps.SILENT)
                left = await engine.sandboxes.start(replace(caller, entrypoint=HEARS % (True, INTERNET)))
                await until_logged(engine, caller.id, "still there?")
                await engine.sandboxes.stop(caller.id, 0)
                await engine.sandboxes.remove(caller.id)
                await until_next(engine, left.ip)
                assert (await engine.sandboxes.start(replace(heir, entrypoint=HEARS % (False, INTERNET)))).ip == left.ip
                await until_logged(engine, heir.id, "begun")
                await asyncio.sleep(1)
                assert await log_text(engine, heir.id) == ["begun"]
        finally:
            stalker.kill()


async def test_flows_left_by_a_killed_service_are_deleted_at_start(world: None, policy: EngineOptions) -> None:
    hello = f"""python3 -c 'import socket; socket.socket(type=2).sendto(b"x", ("{INTERNET}", 7000))'"""
    async with prepared(policy) as engine:
        stays, goes = await make_spec(engine, apps.SILENT), await make_spec(engine, apps.SILENT)
        ips = [(await engine.sandboxes.start(spec)).ip or "" for spec in (stays, goes)]
        for spec in (stays, goes):
            assert (await execute(engine, spec.id, hello, ENGINE_TIMEOUT, 1000)).exit_code == 0
        engine._here.network.forget = lambda ip, *, abort: None  # type: ignore[method-assign]
        await engine.sandboxes.stop(goes.id, 0)
        await engine.sandboxes.remove(goes.id)
        await engine.close()
        assert [tracked(ip) for ip in ips] == [1, 1]
        async with prepared(policy):
            assert [tracked(ip) for ip in ips] == [1, 0]


async def until_logged(engine: OciEngine, sandbox: SandboxId, line: str) -> None:
    async with asyncio.timeout(ENGINE_TIMEOUT):
        while line not in await log_text(engine, sandbox):
            await asyncio.sleep(0.05)


async def until_next(engine: OciEngine, ip: str | None) -> None:
    """Have the next sandbox get this address, once it is free."""
    slots, addresses = engine._here.runs._slots, engine._here.addresses
    mine = next(slot for slot in range(1000) if addresses.of(slot, egress=True) == ip)
    slots._last = mine - 1
    async with asyncio.timeout(ENGINE_TIMEOUT):
        while slots.next() != mine:
            await asyncio.sleep(0.01)


async def test_address_is_freed_even_if_its_flows_cannot_be_deleted(
    engine: OciEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def forget(ip: str, *, abort: bool) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    runs = engine._here.runs
    monkeypatch.setattr(runs.network, "forget", forget)
    spec = await make_spec(engine, apps.SILENT)
    await engine.sandboxes.start(spec)
    await engine.sandboxes.stop(spec.id, 0)
    await engine.sandboxes.remove(spec.id)
    async with asyncio.timeout(ENGINE_TIMEOUT):
        while spec.id in runs._slots._taken.values():
            await asyncio.sleep(0.01)
    assert "flows of ended sandbox not deleted" in caplog.text


async def test_names_are_resolved_by_the_host_s_own_servers(engine: OciEngine) -> None:
    spec = await make_spec(engine, apps.SILENT)
    await engine.sandboxes.start(spec)
    result = await execute(
        engine, spec.id, "cat /etc/resolv.conf; getent hosts contract localhost", ENGINE_TIMEOUT, 10_000
    )
    assert "nameserver 127." not in result.output
    assert str((await engine.sandboxes.report(spec.id)).ip) in result.output
    assert "127.0.0.1" in result.output
