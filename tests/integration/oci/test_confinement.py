"""Confinement of a sandbox, its limits as it sees them, and kills for memory."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.contract.engine import apps
from tests.contract.engine.apps import App
from tests.engines import (
    ENGINE_TIMEOUT,
    RuncEngine,
    StrongEngine,
    execute,
    make_spec,
    prepared,
    settings_in,
    until_state,
)
from tests.small_memory import limited_memory

from builderd.code.model import BundleFile, make_bundle
from builderd.core.errors import EngineUnavailable
from builderd.core.ids import SandboxId, new_sandbox_id
from builderd.core.resources import Resources
from builderd.engine.oci.engine.engine import OciEngine
from builderd.engine.oci.runtime import creation
from builderd.engine.oci.storage.layers import BuildRun
from builderd.engine.port import EngineOptions
from builderd.linux.syscalls import check, libc
from builderd.sandboxes.model import EndCause, SandboxState
from builderd.versions.model import Isolation

pytestmark = pytest.mark.root


async def inside(engine: OciEngine, sandbox: SandboxId, command: str) -> str:
    return (await execute(engine, sandbox, command, ENGINE_TIMEOUT, 100_000)).output


async def test_app_uid_is_unused_on_the_host(engine: OciEngine, settings: EngineOptions) -> None:
    spec = await make_spec(engine, apps.SILENT)
    await engine.sandboxes.start(spec)
    record = json.loads((settings.data_dir / "sandboxes" / spec.id / "record.json").read_text())
    owner = Path("/proc", str(record["process"]["pid"])).stat().st_uid
    assert owner >= 0x6000_0000
    assert owner % 65536 == 1000


#: Takes what is counted for root of the host until no more is given, at most so much, and keeps it; tells how much.
HOARD = """
import ctypes, os, resource, signal, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
kind, most = sys.argv[1], int(sys.argv[2])
taken = 0
try:
    while taken < most and (os.open("/dev/ptmx", 2) if kind == "terminals" else ctypes.CDLL(None).inotify_init()) >= 0:
        taken += 1
except OSError:
    pass
print(taken, flush=True)
if most > 1:
    signal.pause()
"""


@pytest.mark.parametrize(("kind", "limit"), [("inotify", 128), ("terminals", 256)])
async def test_kernel_wide_limits_are_per_sandbox(engine: OciEngine, kind: str, limit: int) -> None:
    greedy, neighbour = await make_spec(engine, apps.SILENT), await make_spec(engine, apps.SILENT)
    for spec in (greedy, neighbour):
        await engine.sandboxes.start(spec)
    hoard = f"python3 -c {shlex.quote(HOARD)} {kind}"
    until = "until [ -s /tmp/taken ]; do sleep 0.1; done; cat /tmp/taken"
    taken = await inside(engine, greedy.id, f"{hoard} 5000 > /tmp/taken 2>&1 & {until}")
    assert 0 < int(taken) <= limit
    assert await inside(engine, neighbour.id, f"{hoard} 1") == "1\n"
    os.close(check(libc.inotify_init(), "root of the host has some left"))


#: Asks for the description of a link again and again, and reads no answer.
HOARDS_ANSWERS = """
import signal, socket, struct
request = struct.pack("IHHIIBxHiII", 32, 18, 1, 1, 0, 0, 0, 1, 0, 0)
kept = []
for _ in range(60):
    kept.append(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))
    kept[-1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    for _ in range(2000):
        kept[-1].send(request)
signal.pause()
"""


async def test_unread_netlink_buffers_are_limited(engine: OciEngine) -> None:
    greedy, neighbour = [await make_spec(engine, apps.SILENT) for _ in range(2)]
    for spec in (greedy, neighbour):
        await engine.sandboxes.start(spec)
    assert await inside(engine, neighbour.id, "python3 -c 'import socket; print(len(socket.if_nameindex()))'") == "2\n"
    await inside(engine, greedy.id, f"python3 -c {shlex.quote(HOARDS_ANSWERS)} > /dev/null 2>&1 &")
    report = await until_state(engine, greedy.id, SandboxState.EXITED)
    assert report.end
    assert report.end.cause is EndCause.OUT_OF_MEMORY
    assert (await engine.sandboxes.report(neighbour.id)).state is SandboxState.RUNNING


#: Attaches filters to a socket, to a group of sockets and to itself; prints the errors.
ATTACHES = """
import ctypes, os, socket, struct
class Program(ctypes.Structure): _fields_ = [("length", ctypes.c_ushort), ("at", ctypes.c_char_p)]
program = ctypes.byref(Program(1, struct.pack("HBBI", 6, 0, 0, 0x7fff0000)))
kernel, far = ctypes.CDLL(None, use_errno=True), 1 << 32
kernel.syscall.argtypes = [ctypes.c_long] * 4 + [ctypes.c_void_p, ctypes.c_long]
taker = socket.socket(type=socket.SOCK_DGRAM)
taker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
socket.socket(socket.AF_INET6).setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
for level in (1, far | 1):
    for option in (26, 51, far | 26):
        assert kernel.syscall(54, taker.fileno(), level, option, program, 16) == -1
        print(ctypes.get_errno(), end=" ")
kernel.syscall.argtypes = [ctypes.c_long] * 3 + [ctypes.c_void_p] + [ctypes.c_long] * 2
for call, first, second in ((157, 22, 2), (157, far | 22, 2), (317, 1, 0)):
    assert kernel.syscall(call, first, second, program, 0, 0) == -1
    print(ctypes.get_errno(), end=" ")
"""


async def test_no_program_attaches_filters(engine: OciEngine) -> None:
    """Their machine code takes from one pool of the host: 0.5 GB of sockets with filters would use it up."""
    spec = await make_spec(engine, apps.SILENT)
    await engine.sandboxes.start(spec)
    assert await inside(engine, spec.id, f"python3 -c {shlex.quote(ATTACHES)}") == "92 92 92 92 92 92 22 22 38 "


async def test_app_persists_and_the_rest_does_not_whatever_uids_it_gets(engine: OciEngine) -> None:
    spec = await make_spec(engine, apps.SILENT)
    await engine.disks.put_bundle(
        spec.disk, make_bundle([BundleFile("run.sh", b"#!/bin/sh\necho ran\n", executable=True)])
    )
    await engine.sandboxes.start(spec)
    assert (
        await inside(engine, spec.id, "./run.sh; echo kept > /app/kept; echo lost > /tmp/lost; ls -l /app/kept") != ""
    )
    await engine.sandboxes.stop(spec.id, ENGINE_TIMEOUT)
    neighbour = await make_spec(engine, apps.SILENT)
    await engine.sandboxes.start(neighbour)
    again = replace(spec, id=new_sandbox_id())
    await engine.sandboxes.remove(spec.id)
    await engine.sandboxes.start(again)
    seen = await inside(
        engine, again.id, "./run.sh; cat kept; ls /tmp; stat -c %U kept run.sh; echo more >> kept && cat kept"
    )
    assert seen.split() == ["ran", "kept", "app", "app", "kept", "more"]


async def test_the_limit_of_cpu_bites(engine: OciEngine) -> None:
    spec = await make_spec(engine, apps.SILENT, resources=Resources(cpu=0.25, memory=0.5, disk=1))
    await engine.sandboxes.start(spec)
    burnt = await inside(
        engine, spec.id, "timeout 1 sh -c 'while :; do :; done'; cat /proc/self/stat >/dev/null; times | tail -1"
    )
    minutes, seconds = burnt.split()[0].rstrip("s").split("m")
    assert int(minutes) == 0
    assert float(seconds) < 0.6, "a quarter of a CPU, with room for the clock's grain"


async def test_a_full_disk_is_the_app_s_own_trouble(engine: OciEngine) -> None:
    spec = await make_spec(engine, apps.SILENT)
    await engine.disks.create_disk(spec.disk, 64 << 20)
    await engine.sandboxes.start(spec)
    assert "Disk quota exceeded" in await inside(engine, spec.id, "head -c 200000000 /dev/zero > /app/big")
    await engine.sandboxes.stop(spec.id, ENGINE_TIMEOUT)
    await engine.sandboxes.remove(spec.id)
    assert (await engine.sandboxes.start(replace(spec, id=new_sandbox_id()))).state is SandboxState.RUNNING


async def test_a_worker_killed_for_memory_does_not_taint_a_later_good_end(engine: OciEngine) -> None:
    command = "python3 -c 'b = bytearray(1 << 30)'; exit 0"
    spec = await make_spec(engine, App(command, apps.SILENT.behaviour))
    await engine.sandboxes.start(spec)
    report = await until_state(engine, spec.id, SandboxState.EXITED)
    assert report.end
    assert (report.end.cause, report.end.exit_code) == (EndCause.EXITED, 0)


async def test_an_app_that_ignores_the_request_to_end_is_killed(engine: OciEngine) -> None:
    deaf = App("trap '' TERM; echo deaf; while :; do sleep 0.1; done", apps.SILENT.behaviour)
    spec = await make_spec(engine, deaf)
    await engine.sandboxes.start(spec)
    async with asyncio.timeout(ENGINE_TIMEOUT):
        while not (await engine.logs.read_log(spec.id)).lines:
            await asyncio.sleep(0.01)
    report = await engine.sandboxes.stop(spec.id, 0.2)
    assert report.end
    assert (report.end.cause, report.end.exit_code) == (EndCause.STOPPED, 137)


async def test_malformed_id_reaches_no_file(engine: OciEngine) -> None:
    for name in ("../../etc/passwd", "*", "", "a/b", "AB"):
        sandbox = SandboxId(name)
        assert (await engine.sandboxes.report(sandbox)).state is SandboxState.ABSENT
        assert await engine.logs.read_log(sandbox) == ([], "", False)
        await engine.sandboxes.remove(sandbox)


SHORT = 128 << 20
#: Takes 300 MB.
HUNGRY = "python3 -c \"import time; a = bytearray(300 << 20); a[::4096] = b'x' * len(a[::4096]); time.sleep(1000)\""


@pytest.fixture
def short_of_memory(engine: OciEngine) -> Iterator[None]:
    """Let all sandboxes of the service together have less memory than one of them may."""
    groups = engine._here.cgroups
    group = Path("/sys/fs/cgroup", "" if groups.version == 2 else "memory", groups.parent.strip("/"))
    group.mkdir(exist_ok=True)
    with limited_memory(group, groups.version, SHORT):
        yield


@pytest.mark.parametrize("isolation", list(Isolation))
async def test_kill_for_the_memory_of_the_host_is_not_taken_for_the_own_limit(
    engine: OciEngine, short_of_memory: None, isolation: Isolation
) -> None:
    spec = await make_spec(engine, App(HUNGRY, apps.SILENT.behaviour), isolation=isolation)
    await engine.sandboxes.start(replace(spec, resources=Resources(cpu=1, memory=1, disk=1)))
    report = await until_state(engine, spec.id, SandboxState.EXITED)
    assert report.end
    assert (report.end.cause, report.out_of_memory) == (EndCause.HOST_OUT_OF_MEMORY, False)
    await engine.sandboxes.stop(spec.id, 0)
    assert await engine.sandboxes.report(spec.id) == report


async def test_build_killed_for_the_memory_of_the_host_is_no_failed_build(
    engine: OciEngine, short_of_memory: None
) -> None:
    run = BuildRun(
        id="b00d",
        argv=("/bin/sh", "-c", HUNGRY),
        env={},
        cwd="/",
        binds=(),
        network=False,
        timeout_seconds=1000,
    )
    with pytest.raises(EngineUnavailable, match="machine was out of memory"):
        await engine._here.layers._runner.run_build(run, lambda line: None)


#: 60 MB in memory that no one gives back.
FILL = "head -c 60000000 /dev/zero > /dev/shm/filled"
SHOWN = (
    "free -m | awk '/^Mem/ {print $2}'; nproc; python3 -c 'import os; print(os.cpu_count())'; "
    "node -p 'v8.getHeapStatistics().heap_size_limit < 300e6' ; cat /proc/meminfo | sed -n 1p | tr -s ' '"
)
RESOURCES = Resources(cpu=0.5, memory=0.25, disk=1)


async def run(engine: OciEngine, sandbox: SandboxId, command: str) -> str:
    return (await execute(engine, sandbox, command, ENGINE_TIMEOUT, 10_000)).output


async def until_used(engine: OciEngine, sandbox: SandboxId, megabytes: int) -> None:
    async with asyncio.timeout(ENGINE_TIMEOUT):
        while int(await run(engine, sandbox, "free -m | awk '/^Mem/ {print $2 - $7}'")) < megabytes:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("kind", [OciEngine, pytest.param(RuncEngine, marks=pytest.mark.slow), StrongEngine])
async def test_programs_inside_are_shown_the_limits(tmp_path: Path, kind: type[OciEngine]) -> None:
    settings = settings_in(tmp_path)
    try:
        async with prepared(settings, kind) as engine:
            spec = await make_spec(engine, apps.SILENT, resources=RESOURCES)
            await engine.sandboxes.start(spec)
            shown = (await run(engine, spec.id, SHOWN)).split("\n")
            assert shown == ["256", "1", "1", "true", "MemTotal: 262144 kB", ""]
    finally:
        await OciEngine(settings).down()


async def test_the_limits_of_the_disk_and_its_use_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(creation, "INTERVAL", 0.05)
    settings = settings_in(tmp_path)
    try:
        async with prepared(settings) as engine:
            spec = await make_spec(engine, apps.SILENT, resources=RESOURCES)
            await engine.sandboxes.start(spec)
            limits = (await run(engine, spec.id, "cat /run/limits/disk")).split()
            assert limits[0::3] == ["/app", "/"]
            assert limits[1::3] == [str(1 << 30), str(256 << 20)]
            await run(engine, spec.id, "head -c 100000000 /dev/zero > /app/big; sync")
            async with asyncio.timeout(ENGINE_TIMEOUT):
                while not 95e6 <= int((await run(engine, spec.id, "cat /run/limits/disk")).split()[2]) <= 105e6:
                    await asyncio.sleep(0.05)
            assert await run(engine, spec.id, "echo > /run/limits/disk; rm -f /run/limits/disk") != ""
    finally:
        await OciEngine(settings).down()


async def test_the_files_outlive_the_service_and_the_next_one_updates_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(creation, "INTERVAL", 0.05)
    settings = settings_in(tmp_path)
    try:
        async with prepared(settings) as engine:
            spec = await make_spec(engine, apps.SILENT, resources=RESOURCES)
            await engine.sandboxes.start(spec)
            engine._here.proc_files.close()
            await run(engine, spec.id, FILL)
            await asyncio.sleep(0.2)
            assert (await run(engine, spec.id, "free -m | awk '/^Mem/ {print $2, $7}'")) == "256 256\n"
            assert await run(engine, spec.id, "echo > /proc/meminfo") != ""
            await engine.close()
            async with prepared(settings) as next_engine:
                await until_used(next_engine, spec.id, 50)
                await next_engine.sandboxes.freeze(spec.id)
                await next_engine.sandboxes.thaw(spec.id)
                await run(next_engine, spec.id, "rm /dev/shm/filled; head -c 90000000 /dev/zero > /dev/shm/filled")
                await until_used(next_engine, spec.id, 80)
    finally:
        await OciEngine(settings).down()
