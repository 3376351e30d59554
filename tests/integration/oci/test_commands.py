"""Commands and changes of files beside a running app."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.contract.engine import apps
from tests.descriptors import held_by
from tests.engines import (
    ENGINE_TIMEOUT,
    RuncEngine,
    StrongEngine,
    execute,
    make_spec,
    past_its_time,
    prepared,
)

from builderd.code.model import BundleFile, make_bundle
from builderd.core.errors import EngineUnavailable
from builderd.core.ids import SandboxId, new_sandbox_id
from builderd.engine.oci.engine.engine import OciEngine
from builderd.engine.oci.runtime import execute as execute_module
from builderd.engine.oci.runtime import listening
from builderd.engine.port import EngineOptions
from builderd.executions.model import ProcessSpec
from builderd.executions.service import Command, capture
from builderd.files.model import UNCONDITIONAL
from builderd.linux.processes import read_proc
from builderd.sandboxes.model import ExecResult, SandboxState
from builderd.versions.model import Isolation

pytestmark = pytest.mark.root

KINDS = {"crun": OciEngine, "runc": RuncEngine, "gvisor": StrongEngine}
RUNC = pytest.param("runc", marks=pytest.mark.slow)
COUNT_DAEMONS = "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -c 'sleep [3]1337'"


async def run(engine: OciEngine, sandbox: SandboxId, command: str, seconds: float = ENGINE_TIMEOUT) -> ExecResult:
    return await execute(engine, sandbox, command, seconds, 10_000)


@pytest.fixture
async def sandbox(engine: OciEngine) -> SandboxId:
    spec = await make_spec(engine, apps.SILENT, env={"GREETING": "hello = you", "PORT": "8000"})
    await engine.sandboxes.start(spec)
    return spec.id


@pytest.fixture
async def strong_sandbox(engine: OciEngine) -> SandboxId:
    spec = await make_spec(engine, apps.SILENT, isolation=Isolation.STRONG)
    await engine.sandboxes.start(spec)
    return spec.id


async def test_a_command_has_the_app_s_user_folder_and_environment(engine: OciEngine, sandbox: SandboxId) -> None:
    result = await run(engine, sandbox, 'id -un; pwd; echo "$GREETING"; echo "$BUILDERD_URL"; cat; echo end')
    assert result.output.splitlines() == [
        "app",
        "/app",
        "hello = you",
        f"http://{engine.sandboxes.gateway}:8080",
        "end",
    ]


@pytest.mark.parametrize("isolation", list(Isolation))
async def test_home_is_beside_the_code_and_outlives_the_sandbox(engine: OciEngine, isolation: Isolation) -> None:
    spec = await make_spec(engine, apps.SILENT, isolation=isolation)
    await engine.sandboxes.start(spec)
    said = await run(
        engine,
        spec.id,
        "echo $HOME; cd; pwd; getent passwd app | cut -d: -f6; echo ~app; "
        "mkdir -p ~/.cache/pip ~/.npm ~/.local/bin && echo kept > ~/.cache/pip/file; "
        "printf '#!/bin/sh\\necho own' > ~/.local/bin/tool; chmod +x ~/.local/bin/tool; cd /app; tool; ls -A /app",
    )
    assert said.output.split() == ["/home/app"] * 4 + ["own"]
    await engine.sandboxes.stop(spec.id, 1)
    again = replace(spec, id=new_sandbox_id())
    await engine.sandboxes.start(again)
    assert (await run(engine, again.id, "cat ~/.cache/pip/file")).output == "kept\n"


async def test_uv_and_python_are_programs_of_every_sandbox(engine: OciEngine, sandbox: SandboxId) -> None:
    command = "uv --version && python -c 'print(1 + 1)' && uv venv -q ~/made && ls ~/made/bin/python"
    said = await run(engine, sandbox, command)
    assert said.exit_code == 0, said.output
    assert said.output.split()[0] == "uv"
    assert said.output.split()[-2:] == ["2", "/home/app/made/bin/python"]


async def test_under_gvisor_a_command_past_its_time_is_killed_with_its_children(
    engine: OciEngine, strong_sandbox: SandboxId
) -> None:
    result = await run(engine, strong_sandbox, "(setsid sleep 31337 &) ; sleep 1000", 2)
    assert result.exit_code == 124
    assert (await run(engine, strong_sandbox, COUNT_DAEMONS)).output == "0\n"
    assert (await engine.sandboxes.report(strong_sandbox)).state is SandboxState.RUNNING


async def test_under_gvisor_a_command_past_its_time_is_answered_though_it_hides(
    engine: OciEngine, strong_sandbox: SandboxId
) -> None:
    async with asyncio.timeout(3 * ENGINE_TIMEOUT):
        result = await past_its_time(engine, strong_sandbox, "echo begun; exec env -i sleep 31337")
    assert (result.exit_code, result.output) == (124, "begun\n")
    assert runtimes_of(strong_sandbox) == []
    assert (await engine.sandboxes.report(strong_sandbox)).state is SandboxState.RUNNING


async def test_under_gvisor_a_look_at_what_listens_ends_though_its_program_hides(
    engine: OciEngine, strong_sandbox: SandboxId, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "_COMMAND", ProcessSpec(("env", "-i", "sleep", "31337"), joined=True))
    async with asyncio.timeout(ENGINE_TIMEOUT):
        assert (await engine.sandboxes.listening(strong_sandbox, 8000)).sockets == frozenset()
    assert runtimes_of(strong_sandbox) == []


def pipes() -> set[str]:
    """That are open here."""
    return {one for one in held_by("self") if one.startswith("pipe:")}


async def test_under_gvisor_a_command_whose_sandbox_is_removed_leaves_nothing_open(
    engine: OciEngine, strong_sandbox: SandboxId
) -> None:
    bundle = engine._here.runs.bundle(strong_sandbox)
    before = pipes()
    async with engine.sandboxes.open_process(strong_sandbox, ProcessSpec(("sleep", "1000"))):
        away = bundle.rename(bundle.with_name(f"{strong_sandbox}-away"))
    away.rename(bundle)
    assert pipes() <= before


@pytest.mark.parametrize("kind", ["crun", RUNC, "gvisor"])
async def test_a_command_that_never_begins_is_given_up_and_killed(
    settings: EngineOptions, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let the gate's loader wait for a library that is never written."""
    async with prepared(settings, KINDS[kind]) as engine:
        spec = await make_spec(engine, apps.SILENT)
        await engine.sandboxes.start(spec)
        assert (await run(engine, spec.id, "mkfifo never.so")).exit_code == 0
        monkeypatch.setattr(execute_module, "_START_SECONDS", 2)
        async with asyncio.timeout(ENGINE_TIMEOUT):
            with pytest.raises(EngineUnavailable, match="in time"):
                await capture(engine.sandboxes, spec.id, Command("true", env={"LD_PRELOAD": "/app/never.so"}), 100)
        monkeypatch.undo()
        assert runtimes_of(spec.id) == []
        waiting = "cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n' | grep -c ^LD_PRELOAD"
        assert (await run(engine, spec.id, waiting)).output == "0\n"


async def test_a_command_that_was_given_up_never_begins(engine: OciEngine, sandbox: SandboxId) -> None:
    """Cancelled while the launcher cannot answer; then the launcher goes on."""
    launcher = engine._here.launcher._process
    assert launcher
    os.kill(launcher.pid, signal.SIGSTOP)
    try:
        begun = asyncio.ensure_future(run(engine, sandbox, "touch /app/begun"))
        await asyncio.sleep(0.2)
        begun.cancel()
        asyncio.get_running_loop().call_later(0.5, os.kill, launcher.pid, signal.SIGCONT)
        with pytest.raises(asyncio.CancelledError):
            await begun
    finally:
        os.kill(launcher.pid, signal.SIGCONT)
    assert (await run(engine, sandbox, "ls -A /app; pgrep -c touch")).output == "0\n"


def runtimes_of(sandbox: SandboxId) -> list[str]:
    """Commands of the host's that run something in there."""
    found = [read_proc(f"{path.name}/cmdline").replace("\0", " ") for path in Path("/proc").glob("[0-9]*")]
    return [command for command in found if " exec " in command and sandbox in command]


async def test_a_character_is_not_cut_in_two(engine: OciEngine, sandbox: SandboxId) -> None:
    result = await execute(engine, sandbox, "printf 'x\\303\\251\\303\\251'", ENGINE_TIMEOUT, 4)
    assert (result.output, result.truncated) == ("xé", True)
    result = await execute(engine, sandbox, "printf 'x\\303'", ENGINE_TIMEOUT, 4)
    assert (result.output, result.truncated) == ("x\ufffd", False)


#: Fills sockets that nobody reads: memory of the kernel, which counts for the sandbox and for none of its processes.
HOARD = """
import socket
kept = []
while True:
    kept.append(socket.socketpair())
    kept[-1][0].setblocking(False)
    try:
        while kept[-1][0].send(bytes(65536)):
            pass
    except BlockingIOError:
        pass
"""


@pytest.mark.parametrize("kind", ["crun", RUNC])
async def test_a_command_is_killed_for_memory_before_the_app_is(settings: EngineOptions, kind: str) -> None:
    async with prepared(settings, KINDS[kind]) as engine:
        spec = await make_spec(engine, apps.SILENT)
        await engine.sandboxes.start(spec)
        scores = await run(engine, spec.id, "cat /proc/1/oom_score_adj /proc/self/oom_score_adj")
        assert scores.output == "500\n500\n"
        assert (await run(engine, spec.id, f"python3 -c '{HOARD}'")).exit_code == 137
        assert (await engine.sandboxes.report(spec.id)).state is SandboxState.RUNNING


@pytest.mark.parametrize("kind", ["crun", RUNC, "gvisor"])
async def test_command_whose_sandbox_is_stopped_ends_as_killed(settings: EngineOptions, kind: str) -> None:
    """The command ends as every process of the sandbox does: the machine is not at fault."""
    async with prepared(settings, KINDS[kind]) as engine:
        spec = await make_spec(engine, apps.SILENT)
        await engine.sandboxes.start(spec)
        running = asyncio.create_task(run(engine, spec.id, "echo begun > /tmp/begun; sleep 60"))
        assert (await run(engine, spec.id, "until [ -s /tmp/begun ]; do sleep 0.05; done")).exit_code == 0
        await engine.sandboxes.stop(spec.id, 0)
        assert (await running).exit_code == 137


def groups_of_commands(engine: OciEngine, sandbox: SandboxId) -> list[Path]:
    folder = engine._here.cgroups._directory("pids", sandbox)
    assert folder.is_dir()
    return list(folder.glob("exec-*"))


async def test_commands_that_leave_something_behind_leave_their_group_only_while_it_goes_on(
    engine: OciEngine, sandbox: SandboxId
) -> None:
    for _ in range(5):
        await run(engine, sandbox, "sleep 0.5 >/dev/null 2>&1 &")
    await run(engine, sandbox, "tail -f /dev/null >/dev/null 2>&1 &")
    assert groups_of_commands(engine, sandbox)
    async with asyncio.timeout(ENGINE_TIMEOUT):
        while len(groups_of_commands(engine, sandbox)) > 1:
            await run(engine, sandbox, "true")
    assert (await run(engine, sandbox, "pgrep -c tail")).output == "1\n", "what goes on keeps its own"


async def one(content: bytes) -> AsyncIterator[bytes]:
    yield content


@pytest.mark.parametrize("isolation", Isolation)
async def test_an_app_sees_files_that_are_put_and_deleted_beside_it(engine: OciEngine, isolation: Isolation) -> None:
    spec = await make_spec(engine, apps.SILENT, isolation=isolation)
    await engine.disks.put_bundle(spec.disk, make_bundle([BundleFile("old.txt", b"old")]))
    await engine.sandboxes.start(spec)

    async def inside(command: str) -> str:
        return (await execute(engine, spec.id, command, ENGINE_TIMEOUT, 1000)).output

    assert await inside("cat old.txt; ls deep new.txt 2>/dev/null") == "old", "what was looked for may be remembered"
    for path, content in (("new.txt", b"new"), ("deep/er/new.txt", b"deep"), ("old.txt", b"changed")):
        await engine.files.write_file(spec.disk, path, one(content), condition=UNCONDITIONAL)
    assert await inside("cat new.txt deep/er/new.txt old.txt") == "newdeepchanged"
    await engine.files.delete_file(spec.disk, "new.txt", UNCONDITIONAL)
    assert await inside("ls; echo own > own.txt") == "deep\nold.txt\n"
    async with engine.files.open_file(spec.disk, "own.txt") as file:
        assert b"".join([piece async for piece in file.read(0, 100)]) == b"own\n"
