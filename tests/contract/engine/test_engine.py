"""Contract of every engine."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace
from unittest.mock import ANY

import pytest
from tests.contract.engine import apps
from tests.contract.engine.apps import PORT
from tests.engines import (
    ENGINE_TIMEOUT,
    execute,
    kill_monitor,
    log_text,
    make_spec,
    past_its_time,
    until_listening,
    until_state,
)
from tests.fakes.engine import FakeEngine

from builderd.code.model import BundleFile, make_bundle
from builderd.core.errors import InvalidState, NotFound
from builderd.core.ids import DiskId, SandboxId, TenantId, new_id, new_sandbox_id
from builderd.core.resources import GB
from builderd.dependencies.model import LAYER, BuildStep, Cache, LayerPlan
from builderd.engine.port import Engine, Tool, ToolExit
from builderd.executions.model import ProcessSpec, Window, shell
from builderd.sandboxes.model import IPV6_ONLY, EndCause, LogLine, LogMatch, LogPage, SandboxState, SandboxUsage


async def test_prepared_engine_is_ready(engine: Engine) -> None:
    assert engine.readiness().ready
    assert engine.layers.base_id
    assert engine.sandboxes.gateway


async def test_use_of_the_machine_is_within_its_capacity(engine: Engine) -> None:
    used, capacity = await engine.use(), engine.capacity()
    assert used.capacity.cpu == capacity.cpu
    assert 0 < used.memory < capacity.memory
    assert 0 < used.disk < used.disk_total <= capacity.disk
    assert used.disks > 0


async def test_started_app_is_reachable(engine: Engine) -> None:
    spec = await make_spec(engine, apps.SERVER)
    report = await engine.sandboxes.start(spec)
    assert (report.state, report.builder_id) == (SandboxState.RUNNING, spec.builder_id)
    assert report.ip
    assert report.started_at
    assert (await until_listening(engine, spec.id)).reachable(PORT)
    assert await engine.sandboxes.report(spec.id) == report


async def test_start_is_idempotent(engine: Engine) -> None:
    spec = await make_spec(engine, apps.SILENT)
    assert await engine.sandboxes.start(spec) == await engine.sandboxes.start(spec)
    assert [report.id for report in await engine.sandboxes.list_sandboxes()].count(spec.id) == 1


async def test_start_of_an_ended_sandbox_does_not_run_it_again(engine: Engine) -> None:
    spec = await make_spec(engine, apps.DONE)
    await engine.sandboxes.start(spec)
    ended = await until_state(engine, spec.id, SandboxState.EXITED)
    assert await engine.sandboxes.start(spec) == ended
    assert await log_text(engine, spec.id) == ["done"]


async def test_disk_has_one_sandbox_at_a_time(engine: Engine) -> None:
    spec = await make_spec(engine, apps.SILENT)
    await engine.sandboxes.start(spec)
    with pytest.raises(InvalidState):
        await engine.sandboxes.start(replace(spec, id=new_sandbox_id()))


async def test_start_without_its_disk_is_refused(engine: Engine) -> None:
    spec = await make_spec(engine, apps.SILENT, disk=DiskId(new_id()))
    with pytest.raises(NotFound):
        await engine.sandboxes.start(spec)
    assert (await engine.sandboxes.report(spec.id)).state is SandboxState.ABSENT


async def test_start_without_its_layer_is_refused(engine: Engine) -> None:
    spec = await make_spec(engine, apps.SILENT, layer_key="0" * 64)
    with pytest.raises(NotFound):
        await engine.sandboxes.start(spec)
    assert (await engine.sandboxes.report(spec.id)).state is SandboxState.ABSENT


async def test_app_on_loopback_is_reached_at_the_sandboxs_address_on_this_machine_alone(engine: Engine) -> None:
    spec = await make_spec(engine, apps.LOOPBACK_SERVER)
    await engine.sandboxes.start(spec)
    listening = await until_listening(engine, spec.id)
    is_cluster = bool(await engine.members())
    assert listening.sockets == {("127.0.0.1" if is_cluster else "0.0.0.0", PORT)}
    assert listening.reachable(PORT) is not is_cluster


async def test_app_on_ipv6_alone_is_unreachable(engine: Engine) -> None:
    spec = await make_spec(engine, apps.IPV6_SERVER)
    await engine.sandboxes.start(spec)
    listening = await until_listening(engine, spec.id)
    assert listening.sockets == {(IPV6_ONLY, PORT)}
    assert not listening.reachable(PORT)


async def test_app_on_another_port_is_reported(engine: Engine) -> None:
    spec = await make_spec(engine, apps.OTHER_PORT_SERVER)
    await engine.sandboxes.start(spec)
    listening = await until_listening(engine, spec.id)
    assert listening.reachable(9000)
    assert not listening.reachable(PORT)


async def test_exit_code_is_reported(engine: Engine) -> None:
    spec = await make_spec(engine, apps.FAILING)
    await engine.sandboxes.start(spec)
    report = await until_state(engine, spec.id, SandboxState.EXITED)
    assert report.end
    assert (report.end.cause, report.end.exit_code) == (EndCause.EXITED, 7)
    assert report.end.at
    assert report.started_at
    assert report.end.at >= report.started_at
    assert report.ip is None
    assert (await engine.sandboxes.listening(spec.id, PORT)).sockets == frozenset()
    assert await engine.sandboxes.usage(spec.id) is None
    assert await log_text(engine, spec.id) == ["good bye"]


async def test_out_of_memory_is_reported(engine: Engine) -> None:
    spec = await make_spec(engine, apps.HOG)
    await engine.sandboxes.start(spec)
    report = await until_state(engine, spec.id, SandboxState.EXITED)
    assert report.end
    assert report.end.cause is EndCause.OUT_OF_MEMORY


async def test_exits_yields_ended_sandboxes(engine: Engine) -> None:
    spec = await make_spec(engine, apps.FAILING)
    exits = engine.sandboxes.exits()
    next_exit = asyncio.ensure_future(anext(exits))
    await asyncio.sleep(0)
    await engine.sandboxes.start(spec)
    await until_state(engine, spec.id, SandboxState.EXITED)
    assert await asyncio.wait_for(next_exit, ENGINE_TIMEOUT) == spec.id


async def test_sandbox_with_killed_monitor_ends_as_monitor_lost(engine: Engine) -> None:
    spec = await make_spec(engine, apps.SERVER)
    await engine.sandboxes.start(spec)
    exits = engine.sandboxes.exits()
    next_exit = asyncio.ensure_future(anext(exits))
    await asyncio.sleep(0)
    await kill_monitor(engine, spec.id)
    assert await asyncio.wait_for(next_exit, ENGINE_TIMEOUT) == spec.id
    report = await engine.sandboxes.report(spec.id)
    assert report.end
    assert (report.state, report.end.cause, report.end.exit_code) == (
        SandboxState.EXITED,
        EndCause.MONITOR_LOST,
        None,
    )
    assert report.end.at
    assert await engine.sandboxes.stop(spec.id, 10) == report
    await engine.sandboxes.remove(spec.id)
    assert (await engine.sandboxes.start(replace(spec, id=new_sandbox_id()))).state is SandboxState.RUNNING


async def test_stopped_sandbox_is_reported_as_stopped(engine: Engine) -> None:
    spec = await make_spec(engine, apps.SERVER)
    await engine.sandboxes.start(spec)
    report = await engine.sandboxes.stop(spec.id, 10)
    assert report.state is SandboxState.EXITED
    assert report.end
    assert report.end.cause is EndCause.STOPPED
    assert await engine.sandboxes.stop(spec.id, 10) == report
    assert await engine.sandboxes.report(spec.id) == report


async def test_stop_of_an_ended_sandbox_keeps_its_end(engine: Engine) -> None:
    spec = await make_spec(engine, apps.FAILING)
    await engine.sandboxes.start(spec)
    ended = await until_state(engine, spec.id, SandboxState.EXITED)
    assert await engine.sandboxes.stop(spec.id, 10) == ended


async def test_unknown_sandbox_is_absent(engine: Engine) -> None:
    sandbox = new_sandbox_id()
    assert (await engine.sandboxes.report(sandbox)).state is SandboxState.ABSENT
    assert (await engine.sandboxes.stop(sandbox, 1)).state is SandboxState.ABSENT
    assert (await engine.sandboxes.listening(sandbox, PORT)).sockets == frozenset()
    assert await engine.sandboxes.usage(sandbox) is None
    assert await engine.logs.read_log(sandbox) == ([], "", False)
    await engine.sandboxes.remove(sandbox)
    with pytest.raises(InvalidState):
        await execute(engine, sandbox, "true", 1, 100)


async def test_remove_keeps_only_the_log(engine: Engine) -> None:
    spec = await make_spec(engine, apps.DONE)
    await engine.sandboxes.start(spec)
    await until_state(engine, spec.id, SandboxState.EXITED)
    await engine.sandboxes.remove(spec.id)
    await engine.sandboxes.remove(spec.id)
    assert (await engine.sandboxes.report(spec.id)).state is SandboxState.ABSENT
    assert spec.id not in [report.id for report in await engine.sandboxes.list_sandboxes()]
    assert await log_text(engine, spec.id) == ["done"]
    await engine.logs.delete_logs(spec.builder_id)
    await engine.logs.delete_logs(spec.builder_id)
    assert await log_text(engine, spec.id) == []


async def test_running_sandbox_cannot_be_removed(engine: Engine) -> None:
    spec = await make_spec(engine, apps.SILENT)
    await engine.sandboxes.start(spec)
    with pytest.raises(InvalidState):
        await engine.sandboxes.remove(spec.id)
    assert (await engine.sandboxes.report(spec.id)).state is SandboxState.RUNNING


async def test_log_is_read_from_a_cursor(engine: Engine) -> None:
    spec = await make_spec(engine, apps.DONE)
    await engine.sandboxes.start(spec)
    await until_state(engine, spec.id, SandboxState.EXITED)
    lines, cursor, _ = await engine.logs.read_log(spec.id)
    assert [line.text for line in lines] == ["done"]
    assert await engine.logs.read_log(spec.id, cursor) == ([], cursor, False)


async def test_last_lines_of_a_log_are_read(engine: Engine) -> None:
    spec = await make_spec(engine, apps.COUNTING)
    await engine.sandboxes.start(spec)
    await until_state(engine, spec.id, SandboxState.EXITED)
    whole, end, _ = await engine.logs.read_log(spec.id)
    assert [line.text for line in whole] == [str(number) for number in range(1, 101)]
    assert await engine.logs.read_log(spec.id, tail=3) == (whole[-3:], end, False)
    assert await engine.logs.read_log(spec.id, tail=0) == ([], end, False)
    assert await engine.logs.read_log(spec.id, tail=1000) == (whole, end, False)


async def test_log_is_read_in_pages_from_a_time(engine: Engine) -> None:
    spec = await make_spec(engine, apps.COUNTING)
    await engine.sandboxes.start(spec)
    await until_state(engine, spec.id, SandboxState.EXITED)
    whole, end, _ = await engine.logs.read_log(spec.id)
    told: list[LogLine] = []
    page = LogPage([], "", more=True)
    while page.more:
        page = await engine.logs.read_log(spec.id, page.cursor, limit=30)
        assert len(page.lines) <= 30
        told += page.lines
    assert (told, page.cursor) == (whole, end)
    start = await engine.logs.read_log(spec.id, tail=3, limit=0)
    assert (start.lines, start.more) == ([], True)
    assert await engine.logs.read_log(spec.id, start.cursor, limit=2) == (whole[-3:-1], ANY, True)
    assert await engine.logs.read_log(spec.id, start.cursor) == (whole[-3:], end, False)
    since = whole[50].time
    lately = (await engine.logs.read_log(spec.id, since=since)).lines
    assert [line for line in lately if line.time >= since] == [line for line in whole if line.time >= since]
    assert await engine.logs.read_log(spec.id, end, since=since, limit=5) == ([], end, False)


async def test_log_is_searched_from_its_end(engine: Engine) -> None:
    spec = await make_spec(engine, apps.COUNTING)
    await engine.sandboxes.start(spec)
    await until_state(engine, spec.id, SandboxState.EXITED)
    whole, end, _ = await engine.logs.read_log(spec.id)
    piece = await engine.logs.search_log(spec.id, LogMatch(search="7"), count=30)
    assert (piece.end, piece.more) == (end, True)
    assert await engine.logs.read_log(spec.id, piece.end) == ([], end, False)
    found = list(piece.lines)
    while piece.more:
        piece = await engine.logs.search_log(spec.id, LogMatch(search="7"), piece.begin, count=30)
        found = [*piece.lines, *found]
    assert found == [line for line in whole if "7" in line.text]
    newest = await engine.logs.search_log(spec.id, LogMatch(since=whole[-3].time), count=1_000)
    assert list(newest.lines) == [line for line in whole if line.time >= whole[-3].time]
    assert (await engine.logs.search_log(new_sandbox_id(), LogMatch(), count=5)).lines == []


async def test_command_returns_both_streams_and_its_exit_code(engine: Engine) -> None:
    spec = await make_spec(engine, apps.SILENT)
    await engine.sandboxes.start(spec)
    result = await execute(engine, spec.id, apps.BOTH_STREAMS.text, ENGINE_TIMEOUT, 1000)
    assert (result.exit_code, result.output, result.truncated) == (3, "one\ntwo\n", False)


async def test_long_output_is_truncated(engine: Engine) -> None:
    spec = await make_spec(engine, apps.SILENT)
    await engine.sandboxes.start(spec)
    result = await execute(engine, spec.id, apps.LONG_OUTPUT.text, ENGINE_TIMEOUT, 1000)
    assert (len(result.output), result.truncated) == (1000, True)


async def test_command_is_killed_at_its_timeout(engine: Engine) -> None:
    spec = await make_spec(engine, apps.SILENT)
    await engine.sandboxes.start(spec)
    result = await past_its_time(engine, spec.id, apps.SLOW.text)
    assert (result.exit_code, result.output) == (124, "begun\n")
    assert (await engine.sandboxes.report(spec.id)).state is SandboxState.RUNNING


async def test_process_reads_stdin_until_it_is_closed(engine: Engine) -> None:
    spec = await make_spec(engine, apps.SILENT)
    await engine.sandboxes.start(spec)
    async with engine.sandboxes.open_process(spec.id, ProcessSpec(shell(apps.ECHO.text))) as process:
        await process.write(b"one")
        assert await process.read() == b"one"
        await process.write(b"two")
        assert await process.read() == b"two"
        process.close_input()
        assert await process.read() == b""
        assert await process.read_errors() == b""
        assert await process.wait() == 0
        await process.write(b"nobody reads this")


async def test_streams_of_a_process_are_separate_unless_joined(engine: Engine) -> None:
    spec = await make_spec(engine, apps.SILENT)
    await engine.sandboxes.start(spec)
    async with engine.sandboxes.open_process(spec.id, ProcessSpec(shell(apps.SPLIT.text))) as process:
        assert await process.wait() == 0
        assert await process.read() == b"out\n"
        assert await process.read_errors() == b"err\n"
    assert (await execute(engine, spec.id, apps.SPLIT.text, ENGINE_TIMEOUT, 100)).output == "out\nerr\n"


async def test_killing_a_process_keeps_the_app_running(engine: Engine) -> None:
    spec = await make_spec(engine, apps.SILENT)
    await engine.sandboxes.start(spec)
    async with engine.sandboxes.open_process(spec.id, ProcessSpec(shell(apps.SLOW.text), window=Window())) as process:
        await process.kill()
        await process.kill()
        assert await process.wait() != 0
    assert (await engine.sandboxes.report(spec.id)).state is SandboxState.RUNNING


async def test_command_in_an_ended_sandbox_is_refused(engine: Engine) -> None:
    spec = await make_spec(engine, apps.DONE)
    await engine.sandboxes.start(spec)
    await until_state(engine, spec.id, SandboxState.EXITED)
    with pytest.raises(InvalidState):
        await execute(engine, spec.id, "true", 1, 100)


async def test_usage_of_a_running_sandbox_is_reported(engine: Engine) -> None:
    spec = await make_spec(engine, apps.SERVER)
    await engine.sandboxes.start(spec)
    await until_listening(engine, spec.id)
    usage = await engine.sandboxes.usage(spec.id)
    assert usage
    assert usage.memory_bytes > 0
    assert usage.processes > 0
    found = await usage_among_many(engine, spec.id)
    # On cgroups v1 Incus's metrics count the kernel's ticks: in a start of 0.2 s some of them are missing.
    assert found.cpu_seconds >= usage.cpu_seconds / 2
    assert found.memory_bytes > 0
    # The check of its port was a request, whose thread may end or begin between the two.
    assert abs(found.processes - usage.processes) <= 1
    # The bytes of a new disk are counted once its file system has written them.
    assert found.disk_bytes > 0 or usage.disk_bytes == 0


async def usage_among_many(engine: Engine, sandbox: SandboxId) -> SandboxUsage:
    """Engines may read many in another way than one."""
    unknown = [SandboxId(f"0123456789abcde{number}") for number in range(5)]
    many = await engine.sandboxes.usages([*unknown, sandbox])
    assert many.keys() == {sandbox}
    found = many[sandbox]
    assert isinstance(found, SandboxUsage)
    return found


async def test_bundle_is_written_to_a_disk_and_cloned_with_it(engine: Engine) -> None:
    bundle = make_bundle([BundleFile("main.py", b"print('hello')\n")])
    disk, clone = DiskId(new_id()), DiskId(new_id())
    assert await engine.disks.disk(disk) is None
    await engine.disks.create_disk(disk, GB)
    await engine.disks.create_disk(disk, GB)
    report = await engine.disks.disk(disk)
    assert report
    assert report.bundle_hash is None
    await engine.disks.put_bundle(disk, bundle)
    await engine.disks.clone_disk(disk, clone, GB)
    for each in (disk, clone):
        report = await engine.disks.disk(each)
        assert report
        assert (report.id, report.bundle_hash) == (each, bundle.hash)
    await engine.disks.delete_disk(disk)
    await engine.disks.delete_disk(disk)
    assert await engine.disks.disk(disk) is None
    assert await engine.disks.disk(clone)


async def test_down_ends_all_sandboxes(engine: Engine) -> None:
    spec = await make_spec(engine, apps.SILENT)
    await engine.sandboxes.start(spec)
    await engine.down()
    assert not engine.readiness().ready
    assert (await engine.sandboxes.report(spec.id)).state is not SandboxState.RUNNING


def make_plan(key: str, script: str) -> LayerPlan:
    step = BuildStep("make it", ("/bin/sh", "-ec", script), network=False, cache=Cache.NONE)
    return LayerPlan(key, {}, (step,), runs_foreign_code=False)


async def test_layer_is_built_once_and_mounted(engine: Engine) -> None:
    plan = make_plan(secrets.token_hex(32), f"mkdir -p {LAYER}/venv && echo hello >{LAYER}/venv/greeting")
    assert not await engine.layers.has_layer(plan.key)
    told: list[str] = []
    first, second = await asyncio.gather(*(engine.layers.build_layer(plan, told.append) for _ in range(2)))
    assert first.ok
    assert second.ok
    assert sorted([first.reused, second.reused]) == [False, True]
    assert await engine.layers.has_layer(plan.key)
    spec = await make_spec(engine, apps.GREETER, layer_key=plan.key)
    await engine.sandboxes.start(spec)
    await until_state(engine, spec.id, SandboxState.EXITED)
    assert await log_text(engine, spec.id) == ["hello"]


async def test_a_stored_layer_has_its_size_and_the_tenant_that_built_it(engine: Engine) -> None:
    tenant = TenantId(new_id())
    plan = make_plan(secrets.token_hex(32), f"mkdir -p {LAYER}/venv && echo hello >{LAYER}/venv/greeting")
    assert (await engine.layers.build_layer(replace(plan, tenant=tenant, limit_bytes=1 << 30), print)).ok
    stored = await engine.layers.stored_layers()
    layer = stored.layers[plan.key]
    missing = secrets.token_hex(32)
    assert (await engine.layers.stored_layers([plan.key, missing])).layers == {plan.key: layer}
    assert layer.tenant == tenant
    assert 0 < layer.bytes < stored.total_bytes
    assert await engine.layers.collect_layers([plan.key], 3600) == []
    assert await engine.layers.collect_layers([plan.key, missing], 0) == [plan.key]
    assert plan.key not in (await engine.layers.stored_layers()).layers


async def _answer(ip: str, seconds: float = ENGINE_TIMEOUT) -> bytes:
    """Return the beginning of a server's response."""
    async with asyncio.timeout(seconds):
        reader, writer = await asyncio.open_connection(ip, PORT)
        try:
            writer.write(b"GET / HTTP/1.0\r\n\r\n")
            return await reader.read(12)
        finally:
            writer.close()


async def test_frozen_sandbox_pauses_and_continues_after_thaw(engine: Engine) -> None:
    spec = await make_spec(engine, apps.SERVER)
    started = await engine.sandboxes.start(spec)
    await until_listening(engine, spec.id)
    frozen = await engine.sandboxes.freeze(spec.id)
    assert (frozen.state, frozen.ip, frozen.alive) == (SandboxState.FROZEN, started.ip, True)
    assert frozen.frozen_at
    assert frozen.thawed_at is None
    assert (
        await engine.sandboxes.freeze(spec.id)
        == frozen
        == await engine.sandboxes.report(spec.id)
        == await engine.sandboxes.start(spec)
    )
    if not isinstance(engine, FakeEngine):
        assert started.ip
        with pytest.raises(TimeoutError):
            await _answer(started.ip, 0.2)
    thawed = await engine.sandboxes.thaw(spec.id)
    assert (thawed.state, thawed.frozen_at) == (SandboxState.RUNNING, frozen.frozen_at)
    assert thawed.thawed_at
    assert thawed.thawed_at >= frozen.frozen_at
    assert await engine.sandboxes.thaw(spec.id) == thawed
    if not isinstance(engine, FakeEngine):
        assert await _answer(started.ip or "") == b"HTTP/1.0 200"


async def test_frozen_sandbox_can_be_stopped(engine: Engine) -> None:
    spec = await make_spec(engine, apps.SILENT)
    await engine.sandboxes.start(spec)
    await engine.sandboxes.freeze(spec.id)
    ended = await engine.sandboxes.stop(spec.id, ENGINE_TIMEOUT)
    assert ended.end
    assert (ended.state, ended.end.cause, ended.end.exit_code) == (SandboxState.EXITED, EndCause.STOPPED, 143)
    await engine.sandboxes.remove(spec.id)


async def test_command_thaws_its_sandbox(engine: Engine) -> None:
    spec = await make_spec(engine, apps.SILENT)
    await engine.sandboxes.start(spec)
    await engine.sandboxes.freeze(spec.id)
    assert (await execute(engine, spec.id, "true", ENGINE_TIMEOUT, 1000)).exit_code == 0
    assert (await engine.sandboxes.report(spec.id)).state is SandboxState.RUNNING


async def test_freeze_and_thaw_ignore_an_ended_sandbox(engine: Engine) -> None:
    spec = await make_spec(engine, apps.DONE)
    assert (await engine.sandboxes.freeze(spec.id)).state is SandboxState.ABSENT
    await engine.sandboxes.start(spec)
    ended = await until_state(engine, spec.id, SandboxState.EXITED)
    assert await engine.sandboxes.freeze(spec.id) == await engine.sandboxes.thaw(spec.id) == ended


async def test_tool_returns_its_output_and_exit_code(engine: Engine) -> None:
    lines: list[str] = []
    assert await engine.tools.run_tool(Tool(("echo", "hello", "there")), lines.append) == ToolExit(0)
    assert lines == ["hello there"]
    assert (await engine.tools.run_tool(Tool(("false",)), lines.append)).exit_code == 1


async def test_tool_requires_its_disk_and_cannot_write_one_in_use(engine: Engine) -> None:
    with pytest.raises(NotFound):
        await engine.tools.run_tool(Tool(("true",), disk=DiskId(new_id())), print)
    spec = await make_spec(engine, apps.SILENT)
    await engine.sandboxes.start(spec)
    with pytest.raises(InvalidState):
        await engine.tools.run_tool(Tool(("true",), disk=spec.disk, writable=True), print)
    assert await engine.tools.run_tool(Tool(("true",), disk=spec.disk), print) == ToolExit(0)


async def test_tool_writes_to_a_disk_that_nothing_was_written_to(engine: Engine) -> None:
    """Backups are brought back to such disks."""
    disk = DiskId(new_id())
    await engine.disks.create_disk(disk, GB)
    assert await engine.tools.run_tool(Tool(("test", "-w", "/disk"), disk=disk, writable=True), print) == ToolExit(0)
    assert await engine.tools.run_tool(Tool(("test", "-d", "/disk"), disk=disk), print) == ToolExit(0)
    await engine.disks.delete_disk(disk)


async def test_unused_layer_is_collected(engine: Engine) -> None:
    plan = make_plan(secrets.token_hex(32), f"mkdir -p {LAYER}/venv && echo hello >{LAYER}/venv/greeting")
    await engine.layers.build_layer(plan, lambda _: None)
    assert plan.key not in (await engine.collect({plan.key}, 0)).layers
    spec = await make_spec(engine, apps.SILENT, layer_key=plan.key)
    await engine.sandboxes.start(spec)
    assert plan.key not in (await engine.collect((), 0)).layers
    assert (await engine.sandboxes.report(spec.id)).alive
    await engine.sandboxes.stop(spec.id, 0)
    await engine.sandboxes.remove(spec.id)
    assert await engine.layers.has_layer(plan.key)
    assert plan.key not in (await engine.collect((), 3600)).layers, "somebody just asked for it"
    assert plan.key in (await engine.collect((), 0)).layers
    assert not await engine.layers.has_layer(plan.key)
    with pytest.raises(NotFound):
        await engine.sandboxes.start(await make_spec(engine, apps.SILENT, layer_key=plan.key))


async def test_kept_layer_is_usable_after_collection(engine: Engine) -> None:
    spec = await make_spec(engine, apps.DONE)
    await engine.sandboxes.start(spec)
    await until_state(engine, spec.id, SandboxState.EXITED)
    await engine.sandboxes.remove(spec.id)
    await engine.collect((), 0)
    again = replace(spec, id=new_sandbox_id())
    await engine.sandboxes.start(again)
    await until_state(engine, again.id, SandboxState.EXITED)
    assert await log_text(engine, again.id) == ["done"]


async def test_removed_sandbox_is_started_another_time(engine: Engine) -> None:
    """A service that is killed after a trial, before that is recorded, repeats it under its id."""
    spec = await make_spec(engine, apps.DONE)
    for _ in range(2):
        await engine.sandboxes.start(spec)
        await until_state(engine, spec.id, SandboxState.EXITED)
        await engine.sandboxes.remove(spec.id)
