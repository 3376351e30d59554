"""Running sandboxes survive the service; the next one adopts them or finds their end, also at a second attempt."""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import subprocess
import sys
import textwrap
import threading
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.contract.engine import apps
from tests.contract.engine.apps import PORT, App
from tests.engines import (
    ENGINE_TIMEOUT,
    execute,
    log_text,
    make_spec,
    prepared,
    settings_in,
    until_listening,
    until_state,
)
from tests.fakes.sandboxes import Behaviour

from builderd.core.errors import EngineUnavailable
from builderd.core.ids import BuilderId, DiskId, SandboxId
from builderd.engine.oci.engine.engine import OciEngine
from builderd.engine.oci.network.network import Network
from builderd.engine.oci.storage.layers import Layers
from builderd.engine.port import EngineOptions
from builderd.executions.model import ProcessSpec, shell
from builderd.sandboxes.model import EndCause, SandboxState
from builderd.versions.model import Isolation

pytestmark = pytest.mark.root


def record_file(settings: EngineOptions, sandbox: SandboxId) -> Path:
    return settings.data_dir / "sandboxes" / sandbox / "record.json"


async def test_an_app_outlives_the_service_and_is_adopted(settings: EngineOptions) -> None:
    async with prepared(settings) as engine:
        spec = await make_spec(engine, apps.SERVER)
        report = await engine.sandboxes.start(spec)
        await until_listening(engine, spec.id)
        await engine.close()
        async with prepared(settings) as next_engine:
            assert await next_engine.sandboxes.report(spec.id) == report
            assert (await next_engine.sandboxes.listening(spec.id, PORT)).reachable(PORT)
            assert (await execute(next_engine, spec.id, "echo here", ENGINE_TIMEOUT, 100)).output == "here\n"
            exits = next_engine.sandboxes.exits()
            told = asyncio.ensure_future(anext(exits))
            await asyncio.sleep(0)
            stopped = await next_engine.sandboxes.stop(spec.id, ENGINE_TIMEOUT)
            assert stopped.end
            assert stopped.end.cause is EndCause.STOPPED
            assert await asyncio.wait_for(told, ENGINE_TIMEOUT) == spec.id


async def test_a_frozen_app_is_adopted_frozen(settings: EngineOptions) -> None:
    async with prepared(settings) as engine:
        spec = await make_spec(engine, apps.SERVER)
        await engine.sandboxes.start(spec)
        await until_listening(engine, spec.id)
        frozen = await engine.sandboxes.freeze(spec.id)
        await engine.close()
        async with prepared(settings) as next_engine:
            assert await next_engine.sandboxes.report(spec.id) == frozen
            assert (await next_engine.sandboxes.thaw(spec.id)).state is SandboxState.RUNNING
            assert (await next_engine.sandboxes.listening(spec.id, PORT)).reachable(PORT)


async def test_down_ends_frozen_sandboxes(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    async with prepared(settings) as engine:
        spec = await make_spec(engine, apps.SILENT)
        await engine.sandboxes.start(spec)
        await engine.sandboxes.freeze(spec.id)
        await engine.down()
    await OciEngine(settings).down()


async def test_an_end_while_no_service_runs_is_found(settings: EngineOptions) -> None:
    async with prepared(settings) as engine:
        spec = await make_spec(engine, App("sleep 0.3; echo last words; exit 9", apps.SILENT.behaviour))
        await engine.sandboxes.start(spec)
        await engine.close()
        async with asyncio.timeout(ENGINE_TIMEOUT):
            while not (settings.data_dir / "exits" / spec.id).exists():
                await asyncio.sleep(0.01)
        async with prepared(settings) as next_engine:
            report = await next_engine.sandboxes.report(spec.id)
            assert report.end
            assert (report.end.cause, report.end.exit_code) == (EndCause.EXITED, 9)
            assert await log_text(next_engine, spec.id) == ["last words"]


async def test_nothing_is_running_after_a_reboot(settings: EngineOptions) -> None:
    async with prepared(settings) as engine:
        spec = await make_spec(engine, apps.SILENT)
        await engine.sandboxes.start(spec)
        # The same as if the machine had been switched off: gone, with no word of how it ended.
        record = json.loads(record_file(settings, spec.id).read_text())
        for name in ("shim", "process"):
            subprocess.run(["kill", "-KILL", str(record[name]["pid"])], check=True)
        await engine.close()
        record_file(settings, spec.id).write_text(json.dumps({**record, "boot": "another"}))
        last_beat = record["started_at"] + 5
        (settings.data_dir / "heartbeat").write_text(f"another {last_beat}")
        async with prepared(settings) as next_engine:
            report = await next_engine.sandboxes.report(spec.id)
            assert report.end
            assert report.end.cause is EndCause.HOST_RESTARTED
            assert report.end.at is not None
            assert report.end.at.timestamp() == pytest.approx(last_beat, abs=1e-3)
            await next_engine.sandboxes.remove(spec.id)
            assert (await next_engine.sandboxes.start(spec)).state is SandboxState.RUNNING


async def test_another_process_with_the_number_is_not_the_app(settings: EngineOptions) -> None:
    async with prepared(settings) as engine:
        spec = await make_spec(engine, apps.SILENT)
        await engine.sandboxes.start(spec)
        record = json.loads(record_file(settings, spec.id).read_text())
        for name in ("shim", "process"):
            subprocess.run(["kill", "-KILL", str(record[name]["pid"])], check=True)
        await engine.close()
        bystander = subprocess.Popen(["sleep", "1000"])
        for name in ("shim", "process"):
            record[name]["pid"] = bystander.pid
        record_file(settings, spec.id).write_text(json.dumps(record))
        async with prepared(settings) as next_engine:
            assert (await next_engine.sandboxes.report(spec.id)).state is SandboxState.EXITED
            await next_engine.sandboxes.stop(spec.id, 0)
            await next_engine.sandboxes.remove(spec.id)
        assert bystander.poll() is None
        bystander.kill()
        bystander.wait()


CRASHING_SERVICE = textwrap.dedent("""
    import asyncio, os, signal, sys
    from pathlib import Path
    from builderd.engine.oci.engine.engine import OciEngine
    from builderd.engine.oci.runtime.creation import Creation
    from builderd.engine.oci.runtime.runs import Runs
    from tests.contract.engine import apps
    from tests.engines import make_spec, settings_in

    method, sandbox = sys.argv[2:]

    async def die(self, *arguments):
        os.kill(os.getpid(), signal.SIGKILL)

    async def main():
        engine = OciEngine(settings_in(Path(sys.argv[1])))
        await engine.prepare(lambda line: None)
        spec = await make_spec(engine, apps.SERVER, id=sandbox)
        print(spec.builder_id, flush=True)
        setattr(Creation if method == "launch_shim" else Runs, method, die)
        await engine.sandboxes.start(spec)

    asyncio.run(main())
""")


@pytest.mark.parametrize(
    "method", ["create", *(pytest.param(name, marks=pytest.mark.slow) for name in ("launch_shim", "release"))]
)
async def test_a_start_that_was_cut_off_is_mended_by_starting_again(settings: EngineOptions, method: str) -> None:
    sandbox = SandboxId("c0ffee0000000001")
    died = subprocess.run(
        [sys.executable, "-c", CRASHING_SERVICE, str(settings.data_dir), method, sandbox],
        capture_output=True,
        text=True,
        check=False,
        timeout=ENGINE_TIMEOUT,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    async with prepared(settings) as engine:
        assert (await engine.sandboxes.report(sandbox)).state is SandboxState.PARTIAL
        spec = await make_spec(engine, apps.SERVER, id=sandbox)
        builder = died.stdout.strip()
        spec = replace(spec, builder_id=BuilderId(builder), disk=DiskId(builder))
        assert (await engine.sandboxes.start(spec)).state is SandboxState.RUNNING
        assert (await until_listening(engine, sandbox)).reachable(PORT)
        assert [report.id for report in await engine.sandboxes.list_sandboxes()] == [sandbox]


async def test_started_sandbox_is_adopted_after_a_service_crash(settings: EngineOptions) -> None:
    async with prepared(settings) as engine:
        spec = await make_spec(engine, apps.SERVER)
        await engine.sandboxes.start(spec)
        await engine.close()
        record = json.loads(record_file(settings, spec.id).read_text())
        record_file(settings, spec.id).write_text(json.dumps({**record, "started_at": None}))
        async with prepared(settings) as next_engine:
            assert (await next_engine.sandboxes.report(spec.id)).state is SandboxState.RUNNING


async def test_sandbox_that_ended_before_its_start_was_recorded_is_not_run_again(settings: EngineOptions) -> None:
    async with prepared(settings) as engine:
        spec = await make_spec(engine, App("echo x >> runs", Behaviour()))
        await engine.sandboxes.start(spec)
        await until_state(engine, spec.id, SandboxState.EXITED)
        await engine.close()
        record = json.loads(record_file(settings, spec.id).read_text())
        record_file(settings, spec.id).write_text(json.dumps({**record, "started_at": None}))
        async with prepared(settings) as next_engine:
            report = await next_engine.sandboxes.start(spec)
            assert (report.state, report.end.exit_code if report.end else None) == (SandboxState.EXITED, 0)
            async with next_engine.files.open_file(spec.disk, "runs") as file:
                assert b"".join([piece async for piece in file.read(0, 100)]) == b"x\n"


@pytest.mark.parametrize("isolation", [Isolation.STANDARD, pytest.param(Isolation.STRONG, marks=pytest.mark.slow)])
async def test_commands_open_at_a_crash_are_killed_and_daemons_of_ended_ones_go_on(
    settings: EngineOptions, isolation: Isolation
) -> None:
    """Their timeouts ended with the service: they went on for ever."""
    look = "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -o 'sleep 500[0-9]' | sort -u"
    async with prepared(settings) as engine, AsyncExitStack() as left:
        spec = await make_spec(engine, apps.SERVER, isolation=isolation)
        await engine.sandboxes.start(spec)
        await execute(engine, spec.id, "sleep 5001 >/dev/null 2>&1 &", ENGINE_TIMEOUT, 100)
        await left.enter_async_context(
            engine.sandboxes.open_process(spec.id, ProcessSpec(shell("sleep 5002 & sleep 5003")))
        )
        while "sleep 5003" not in (await execute(engine, spec.id, look, ENGINE_TIMEOUT, 1000)).output:
            await asyncio.sleep(0.05)
        await engine.close()
        async with prepared(settings) as next_engine:
            assert (await execute(next_engine, spec.id, look, ENGINE_TIMEOUT, 1000)).output == "sleep 5001\n"
            assert (await next_engine.sandboxes.report(spec.id)).state is SandboxState.RUNNING
            with suppress(EngineUnavailable):
                await left.aclose()


async def test_sandbox_frozen_for_an_interrupted_copy_is_thawed(settings: EngineOptions) -> None:
    async with prepared(settings) as engine:
        spec = await make_spec(engine, apps.SERVER)
        await engine.sandboxes.start(spec)
        await until_listening(engine, spec.id)
        engine._here.runs.cgroups.freeze(spec.id)
        assert (await engine.sandboxes.report(spec.id)).state is SandboxState.RUNNING
        await engine.close()
        await engine.prepare(lambda line: None)
        assert not engine._here.runs.cgroups.is_frozen(spec.id)
        assert (await execute(engine, spec.id, "echo on", 10, 1000)).output == "on\n"


def quiet(line: str) -> None:
    """Progress that nobody reads."""


def opened() -> tuple[int, int]:
    """Descriptors and tasks."""
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir())), len(asyncio.all_tasks())


async def until_let_go(before: tuple[int, int]) -> None:
    """A beat of the heart may be half-way written."""
    async with asyncio.timeout(ENGINE_TIMEOUT):
        while any(now > then for now, then in zip(opened(), before, strict=True)):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("part", [Network, Layers])
async def test_preparing_succeeds_on_retry(
    settings: EngineOptions, monkeypatch: pytest.MonkeyPatch, part: type[Network] | type[Layers]
) -> None:
    def fail(*_: object) -> None:
        raise EngineUnavailable("not now")

    async with prepared(settings) as engine:
        spec = await make_spec(engine, apps.SILENT)
        await engine.sandboxes.start(spec)
        await engine.close()
        await asyncio.sleep(0)  # what was cancelled ends
        before = opened()
        with monkeypatch.context() as patch:
            patch.setattr(part, "open", fail)
            with pytest.raises(EngineUnavailable, match="not now"):
                await engine.prepare(quiet)
        await until_let_go(before)
        await engine.prepare(quiet)
        assert (await engine.sandboxes.report(spec.id)).state is SandboxState.RUNNING


async def test_cancelled_preparing_leaves_nothing_open(
    settings: EngineOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on, may_end = threading.Event(), threading.Event()

    def wait(*_: Any) -> None:
        goes_on.set()
        may_end.wait(ENGINE_TIMEOUT)

    engine = OciEngine(settings)
    with monkeypatch.context() as patch:
        patch.setattr(Network, "open", wait)
        preparing = asyncio.create_task(engine.prepare(quiet))
        await asyncio.to_thread(goes_on.wait)
        preparing.cancel()
        await asyncio.sleep(0.05)
        ended_first = preparing.done()
        may_end.set()
        assert not ended_first, "its thread goes on"
        with pytest.raises(asyncio.CancelledError):
            await preparing
    async with prepared(settings):
        pass
