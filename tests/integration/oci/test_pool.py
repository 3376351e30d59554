"""Prepared sandboxes: a claimed one is like any other, and nothing of the pool is shared, leaked or waited for."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.contract.engine import apps
from tests.engines import ENGINE_TIMEOUT, execute, log_text, make_spec, prepared, settings_in, until_state
from tests.integration.oci.test_leaks import traces

from builderd.adapters.engines.oci.engine.engine import OciEngine
from builderd.adapters.engines.oci.network.allocations import known_instance
from builderd.adapters.engines.oci.runtime import pool
from builderd.domain.errors import NotFound
from builderd.domain.ids import BuilderId, DiskId, SandboxId
from builderd.domain.resources import Resources
from builderd.domain.sandboxes import SandboxSpec, SandboxState
from builderd.domain.versions import Isolation
from builderd.linux.processes import is_alive
from builderd.ports.engine import EngineOptions

pytestmark = pytest.mark.root

#: What a program can see of its sandbox, but for ids and its own name.
PROBE = r"""
env | grep -v BUILDERD_URL | sort
cat /etc/hostname; hostname; grep -v "^[0-9.]* probe" /etc/hosts
awk '{ $1 = $2 = $3 = ""; sub(/master:[0-9]+ /, ""); print }' /proc/self/mountinfo | sort
stat -c '%U:%G %a %n' / /app /run /run/* /tmp /dev/shm /etc/hosts /etc/hostname
find /run/credentials -type f -exec cat {} +
ls -A /dev/shm /tmp /app
grep -E '^(Cap|NoNewPrivs|Seccomp|Uid|Gid)' /proc/self/status
cat /proc/self/oom_score_adj
grep MemTotal /proc/meminfo; grep -c ^processor /proc/cpuinfo; grep -c ^cpu /proc/stat; nproc
ulimit -a; df --output=size /dev/shm; pwd; tr '\0' '\n' < /proc/1/cmdline | head -3; readlink /proc/self/cwd
"""

#: What each sandbox has of its own: its disk, its ids.
OWN = re.compile(r"/disks/[0-9a-f-]+|subvolid=\d+|[ug]id=\d+")


@pytest.fixture(scope="module")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> EngineOptions:
    return settings_in(tmp_path_factory.mktemp("pooled"), sandbox_pool=1, log_limit=100_000)


@pytest.fixture
async def engine(pooled: EngineOptions, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[OciEngine]:
    """An engine with one prepared sandbox, also on a machine that is never idle."""
    monkeypatch.setattr(pool, "IDLE_CPUS", -1)
    monkeypatch.setattr(pool, "PAUSE", 0.01)
    async with prepared(pooled) as engine:
        yield engine


@pytest.fixture(scope="module", autouse=True)
def nothing_stays(pooled: EngineOptions) -> Iterator[None]:
    yield
    asyncio.run(OciEngine(pooled).down())


async def reserved(engine: OciEngine) -> SandboxId:
    async with asyncio.timeout(ENGINE_TIMEOUT):
        while (found := engine.reserve(Isolation.STANDARD, None)) is None:
            await asyncio.sleep(0.01)
    return found


async def claimed(engine: OciEngine, entrypoint: str = apps.SILENT.entrypoint, **changes: object) -> SandboxSpec:
    """A sandbox that was started in a prepared one."""
    spec = await make_spec(engine, apps.SILENT, id=await reserved(engine), entrypoint=entrypoint, **changes)
    process = record_of(engine, spec.id).process
    await engine.start(spec)
    assert record_of(engine, spec.id).process == process
    return spec


def record_of(engine: OciEngine, sandbox: SandboxId):  # type: ignore[no-untyped-def]
    record = engine._here.runs.find(sandbox)
    assert record
    return record


def limits_of(engine: OciEngine, sandbox: SandboxId) -> dict[str, str]:
    """The limits in the sandbox's control groups; the counters beside them differ."""
    names = ("cpu.shares", "cpu.cfs_quota_us", "cpu.max", "cpu.weight", "pids.max", "memory.max", "memory.swap.max")
    files = (*names, "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.kmem.tcp.limit_in_bytes")
    found: dict[str, str] = {}
    for folder in engine._here.cgroups._directories(sandbox):
        found |= {name: (folder / name).read_text().strip() for name in files if (folder / name).exists()}
    return found


async def test_a_claimed_sandbox_is_like_one_that_was_made_for_its_app(engine: OciEngine) -> None:
    same = {
        "env": {"PORT": "8000", "QUOTED": 'it\'s "a"\n$HOME `x`'},
        "secret_files": {"key/TOKEN": "s3cret"},
        "hostname": "probe",
        "resources": Resources(cpu=0.5, memory=0.5, disk=1),
    }
    seen = []
    for start in (claimed, _ordinary):
        spec = await start(engine, f"({PROBE}) 2>&1; echo over; exec sleep 1000", **same)
        async with asyncio.timeout(ENGINE_TIMEOUT):
            while "over" not in (lines := await log_text(engine, spec.id)):
                await asyncio.sleep(0.01)
        inside = await execute(engine, spec.id, PROBE, ENGINE_TIMEOUT, 100_000)
        told = [OWN.sub("", line) for line in lines], OWN.sub("", inside.output)
        seen.append((*told, limits_of(engine, spec.id)))
        files = "cat /proc/1/cgroup /proc/self/cgroup /proc/1/mountinfo /proc/self/mountinfo"
        shown = (await execute(engine, spec.id, files, ENGINE_TIMEOUT, 100_000)).output
        assert "/run/credentials" in shown
        assert not [name for name in ("builderd", "/sandboxes", spec.id) if name in shown]
        await engine.stop(spec.id, 0)
        await engine.remove(spec.id)
    for ours, theirs in zip(*seen, strict=True):
        assert ours == theirs
    assert "s3cret" in seen[0][1]


async def _ordinary(engine: OciEngine, entrypoint: str, **changes: object) -> SandboxSpec:
    spec = await make_spec(engine, apps.SILENT, entrypoint=entrypoint, **changes)
    await engine.start(spec)
    return spec


async def test_nothing_of_one_tenant_is_left_for_the_next(engine: OciEngine) -> None:
    mark = "mine-4711"
    first = await claimed(
        engine,
        f"echo {mark} | tee /app/a /tmp/a /dev/shm/a /var/tmp/a; exec sleep 1000",
        env={"MARK": mark},
        secret_files={"key/MARK": mark},
        hostname=mark,
        tenant_id="first",
    )
    await until_written(engine, first.id)
    second = await claimed(engine, tenant_id="second")
    assert record_of(engine, second.id).ip != record_of(engine, first.id).ip
    for spec in (second, await _after(engine, first)):
        # Programs that search see their own words: those are put together.
        search = (
            "m=mine-; m=${m}4711; grep -rls $m /app /tmp /dev/shm /var/tmp /etc /run /proc/[0-9]*/environ; hostname"
        )
        result = await execute(engine, spec.id, search, ENGINE_TIMEOUT, 10_000)
        assert result.output == "contract\n"
        assert mark not in (engine._opened._options.data_dir / "sandboxes" / spec.id / "record.json").read_text()


async def until_written(engine: OciEngine, sandbox: SandboxId) -> None:
    async with asyncio.timeout(ENGINE_TIMEOUT):
        while not await log_text(engine, sandbox):
            await asyncio.sleep(0.01)


async def _after(engine: OciEngine, former: SandboxSpec) -> SandboxSpec:
    """A sandbox of the pool that was made after the former one was gone."""
    await engine.stop(former.id, 0)
    await engine.remove(former.id)
    await engine.stop(await reserved(engine), 0)
    return await claimed(engine, tenant_id="second")


async def test_the_environment_is_in_memory_only(engine: OciEngine) -> None:
    spec = await claimed(engine, env={"MARK": "mine-4711"}, secret_files={"key/MARK": "mine-4711"})
    scratch = engine._here.store.root / "scratch" / spec.disk
    assert (scratch / "upper/etc/hostname").read_text() == "contract\n"
    assert not [path for path in scratch.rglob("*") if path.is_file() and b"mine-4711" in path.read_bytes()]


async def test_a_tenant_that_took_the_last_one_keeps_no_other_from_starting(engine: OciEngine) -> None:
    taken = await claimed(engine, tenant_id="first")
    assert engine.reserve(Isolation.STANDARD, None) is None
    other = await make_spec(engine, apps.SILENT, tenant_id="second")
    assert (await engine.start(other)).state is SandboxState.RUNNING
    assert (await engine.report(taken.id)).state is SandboxState.RUNNING


async def test_prepared_sandboxes_have_no_layer_and_no_gvisor(engine: OciEngine) -> None:
    given_up = await reserved(engine)
    assert (await engine.report(given_up)).state is SandboxState.ABSENT
    assert given_up not in [report.id for report in await engine.list_sandboxes()]
    await engine.stop(given_up, 0)
    assert engine._here.runs.find(given_up) is None
    assert engine.reserve(Isolation.STRONG, None) is None
    assert engine.reserve(Isolation.STANDARD, "some-layer") is None


async def test_a_dead_one_is_replaced_by_a_new_one_of_its_id(engine: OciEngine) -> None:
    spec = await make_spec(engine, apps.SILENT, id=await reserved(engine))
    process = record_of(engine, spec.id).process
    os.kill(process.pid, signal.SIGKILL)
    await process.wait(ENGINE_TIMEOUT)
    assert (await engine.start(spec)).state is SandboxState.RUNNING
    assert record_of(engine, spec.id).process != process
    assert (await execute(engine, spec.id, "hostname", ENGINE_TIMEOUT, 100)).output == "contract\n"


async def test_a_reservation_that_nobody_starts_is_removed(engine: OciEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "RESERVED_SECONDS", 0.01)
    forgotten = await reserved(engine)
    async with asyncio.timeout(ENGINE_TIMEOUT):
        while engine._here.runs.find(forgotten):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "error", [NotFound("There is no disk."), OSError("No space left on device")], ids=["gone", "full"]
)
async def test_start_that_fails_before_the_claim_leaves_no_prepared_sandbox(
    engine: OciEngine, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    spec = await make_spec(engine, apps.SILENT, id=await reserved(engine))
    process = record_of(engine, spec.id).process
    with monkeypatch.context() as patch:
        patch.setattr(engine._here.disks, "adopt_scratch", fail)
        if isinstance(error, NotFound):
            with pytest.raises(NotFound):
                await engine.start(spec)
            assert engine._here.runs.find(spec.id) is None
        else:
            assert (await engine.start(spec)).state is SandboxState.RUNNING
            assert record_of(engine, spec.id).process != process
    assert not is_alive(process)
    assert not (engine._here.store.root / "scratch" / f".prepared-{spec.id}").exists()


async def test_its_log_is_its_builders_also_after_it_was_full(engine: OciEngine) -> None:
    spec = await claimed(engine, "echo first; seq 20000; echo last; exec sleep 1000")
    async with asyncio.timeout(ENGINE_TIMEOUT):
        while "last" not in (lines := await log_text(engine, spec.id)):
            await asyncio.sleep(0.05)
    assert lines[0] == "first"
    await engine.stop(spec.id, 0)
    await engine.remove(spec.id)
    assert await log_text(engine, spec.id) == lines


async def test_the_next_service_removes_what_was_prepared_and_keeps_what_was_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "IDLE_CPUS", -1)
    settings = settings_in(tmp_path, sandbox_pool=2)
    try:
        async with prepared(replace(settings, sandbox_pool=0)) as engine:
            spec = await _ordinary(engine, apps.SILENT.entrypoint)
            await engine.stop(spec.id, 0)
            await engine.remove(spec.id)
            await engine.delete_disk(spec.disk)
            instance = known_instance(tmp_path)
            assert instance
        before = traces(tmp_path, instance.id)
        async with prepared(settings) as engine:
            spec = await claimed(engine)
            forgotten = await reserved(engine)
            monkeypatch.setattr(pool.Pool, "close", _killed)
            await engine.close()
            async with prepared(replace(settings, sandbox_pool=0)) as next_engine:
                assert [record.id for record in next_engine._here.runs.all()] == [spec.id]
                assert (await execute(next_engine, spec.id, "hostname", ENGINE_TIMEOUT, 100)).output == "contract\n"
                assert (await next_engine.report(forgotten)).state is SandboxState.ABSENT
                await next_engine.stop(spec.id, 0)
                await until_state(next_engine, spec.id, SandboxState.EXITED)
                await next_engine.remove(spec.id)
                await next_engine.delete_disk(spec.disk)
                assert not list((next_engine._here.store.root / "scratch").iterdir())
        after = traces(tmp_path, instance.id)
        assert after == before
    finally:
        await OciEngine(settings).down()


async def _killed(pool_: pool.Pool) -> None:
    """End the task, as the death of the process does, and remove nothing."""
    if pool_._filling:
        pool_._filling.cancel()
        await asyncio.wait({pool_._filling})


KILLED_SERVICE = textwrap.dedent("""
    import asyncio, os, signal, sys
    from pathlib import Path
    from builderd.adapters.engines.oci.engine.engine import OciEngine
    from builderd.adapters.engines.oci.runtime import pool
    from builderd.adapters.engines.oci.runtime.runs import Runs
    from tests.contract.engine import apps
    from tests.engines import make_spec, settings_in
    from tests.integration.oci.test_pool import reserved

    async def die(self, *arguments):
        os.kill(os.getpid(), signal.SIGKILL)

    async def main():
        pool.IDLE_CPUS = -1
        engine = OciEngine(settings_in(Path(sys.argv[1]), sandbox_pool=1))
        await engine.prepare(lambda line: None)
        spec = await make_spec(engine, apps.SILENT, id=await reserved(engine))
        print(spec.id, spec.disk, flush=True)
        setattr(Runs, sys.argv[2], die)
        await engine.start(spec)

    asyncio.run(main())
""")


@pytest.mark.parametrize("method", ["share_ports", "release"])
async def test_a_claim_that_was_cut_off_is_mended_by_starting_again(pooled: EngineOptions, method: str) -> None:
    """Killed before the record says whose it is, and after that but before it runs."""
    words = [sys.executable, "-c", KILLED_SERVICE, str(pooled.data_dir), method]
    died = subprocess.run(words, capture_output=True, text=True, check=False, timeout=ENGINE_TIMEOUT)
    assert died.returncode == -signal.SIGKILL, died.stderr
    sandbox, disk = died.stdout.split()
    async with prepared(replace(pooled, sandbox_pool=0)) as engine:
        spec = await make_spec(
            engine, apps.SILENT, id=SandboxId(sandbox), disk=DiskId(disk), builder_id=BuilderId(disk)
        )
        assert not (await engine.report(spec.id)).alive
        assert (await engine.start(spec)).state is SandboxState.RUNNING
        assert (await execute(engine, spec.id, "hostname", ENGINE_TIMEOUT, 100)).output == "contract\n"
        assert not [path.name for path in (engine._here.store.root / "scratch").glob(".*")]
