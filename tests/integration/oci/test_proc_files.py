"""Limits shown by ``free``, ``nproc``, Node.js and Python inside: the sandbox's own, with and without the service."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.contract.engine import apps
from tests.engines import ENGINE_TIMEOUT, RuncEngine, StrongEngine, execute, make_spec, prepared, settings_in

from builderd.adapters.engines.oci.engine.engine import OciEngine
from builderd.adapters.engines.oci.runtime import proc_files
from builderd.domain.ids import SandboxId
from builderd.domain.resources import Resources

pytestmark = pytest.mark.root

#: 60 MB in memory that no one gives back.
HOLD = "head -c 60000000 /dev/zero > /dev/shm/held"
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


@pytest.mark.parametrize("kind", [OciEngine, RuncEngine, StrongEngine])
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
    monkeypatch.setattr(proc_files, "INTERVAL", 0.05)
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
    monkeypatch.setattr(proc_files, "INTERVAL", 0.05)
    settings = settings_in(tmp_path)
    try:
        async with prepared(settings) as engine:
            spec = await make_spec(engine, apps.SILENT, resources=RESOURCES)
            await engine.sandboxes.start(spec)
            engine._here.proc_files.close()
            await run(engine, spec.id, HOLD)
            await asyncio.sleep(0.2)
            assert (await run(engine, spec.id, "free -m | awk '/^Mem/ {print $2, $7}'")) == "256 256\n"
            assert await run(engine, spec.id, "echo > /proc/meminfo") != ""
            await engine.close()
            async with prepared(settings) as next_engine:
                await until_used(next_engine, spec.id, 50)
                await next_engine.sandboxes.freeze(spec.id)
                await next_engine.sandboxes.thaw(spec.id)
                await run(next_engine, spec.id, "rm /dev/shm/held; head -c 90000000 /dev/zero > /dev/shm/held")
                await until_used(next_engine, spec.id, 80)
    finally:
        await OciEngine(settings).down()
