"""Terminals beside a running app."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.contract.engine import apps
from tests.engines import ENGINE_TIMEOUT, RuncEngine, StrongEngine, execute, make_spec, prepared

from builderd.core.errors import InvalidState, ValidationFailed
from builderd.core.ids import SandboxId
from builderd.engine.oci.engine.engine import OciEngine
from builderd.engine.oci.runtime.execute import MAX_OPEN
from builderd.engine.port import EngineOptions, Process
from builderd.executions.model import ProcessSpec, Window, shell

pytestmark = pytest.mark.root

SH = ProcessSpec(("/bin/sh",), env={"PS1": "> "}, window=Window(100, 30))
KINDS = {"crun": OciEngine, "runc": RuncEngine, "gvisor": StrongEngine}
COUNT = "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -c 'sleep [3]133[7-9]'"


@pytest.fixture(params=list(KINDS))
async def each(request: pytest.FixtureRequest, settings: EngineOptions) -> AsyncIterator[OciEngine]:
    async with prepared(settings, KINDS[request.param]) as engine:
        yield engine


async def silent(engine: OciEngine) -> SandboxId:
    spec = await make_spec(engine, apps.SILENT)
    await engine.sandboxes.start(spec)
    return spec.id


async def until(process: Process, words: bytes) -> bytes:
    seen = b""
    async with asyncio.timeout(ENGINE_TIMEOUT):
        while words not in seen:
            piece = await process.read()
            assert piece, seen
            seen += piece
    return seen


async def rest(process: Process) -> bytes:
    seen = b""
    async with asyncio.timeout(ENGINE_TIMEOUT):
        while piece := await process.read():
            seen += piece
    return seen


async def test_a_shell_has_a_terminal_of_the_window_s_size(each: OciEngine) -> None:
    sandbox = await silent(each)
    async with each.sandboxes.open_process(sandbox, SH) as process:
        await process.write(b"echo $TERM; test -t 0 && stty size; echo one$((1+1))\n")
        seen = await until(process, b"one2")
        assert b"xterm-256color" in seen
        assert b"30 100" in seen
        assert b"\x06" not in seen
        await process.write(b"trap 'echo resi''zed' WINCH; echo two$((1+1))\n")
        await until(process, b"two2")
        process.resize(Window(132, 50))
        seen = b""
        async with asyncio.timeout(ENGINE_TIMEOUT):
            # The shell itself is told, as long as no program has the terminal.
            while b"resized" not in seen:
                await process.write(b"echo three$((1+1))\n")
                seen += await until(process, b"three2")
        await process.write(b"stty size; echo size$((1+1))\n")
        assert b"50 132" in await until(process, b"size2")
        await process.write(b"sleep 31337\n")
        async with asyncio.timeout(ENGINE_TIMEOUT):
            while (await execute(each, sandbox, COUNT, ENGINE_TIMEOUT, 100)).output == "0\n":
                await asyncio.sleep(0.05)
        await process.write(b"\x03echo four$((1+1))\n")
        await until(process, b"four2")
        await process.write(b"exit 7\n")
        await rest(process)
        assert await process.wait() == 7


async def test_the_end_of_a_long_output_is_not_lost(each: OciEngine) -> None:
    spec = ProcessSpec(shell("seq 100000"), window=Window())
    async with each.sandboxes.open_process(await silent(each), spec) as process:
        assert (await rest(process)).split() == [str(number).encode() for number in range(1, 100_001)]


async def test_disconnect_ends_the_shell_and_its_processes(each: OciEngine) -> None:
    sandbox = await silent(each)
    async with each.sandboxes.open_process(sandbox, SH) as process:
        await process.write(b"echo one$((1+1)); sleep 31337\n")
        await until(process, b"one2")
    async with each.sandboxes.open_process(sandbox, ProcessSpec(shell("trap '' HUP; sleep 31338"), window=Window())):
        await asyncio.sleep(0.2)
    async with each.sandboxes.open_process(sandbox, ProcessSpec(shell("sleep 31339 >/dev/null 2>&1 </dev/null"))):
        await asyncio.sleep(0.2)
    assert (await execute(each, sandbox, COUNT, ENGINE_TIMEOUT, 100)).output == "0\n"


async def test_end_of_input_ends_a_shell(engine: OciEngine) -> None:
    async with engine.sandboxes.open_process(await silent(engine), SH) as process:
        process.close_input()
        await rest(process)
        assert await process.wait() == 0


async def test_terminals_inside_a_sandbox_are_not_the_hosts(engine: OciEngine) -> None:
    async with engine.sandboxes.open_process(await silent(engine), SH) as process:
        await process.write(b"tty; ls /dev/pts; echo one$((1+1))\n")
        seen = await until(process, b"one2")
        assert b"/dev/pts/0" in seen
        assert b"0  ptmx" in seen or b"0\r\nptmx" in seen


async def test_terminal_in_a_missing_folder_is_refused(engine: OciEngine) -> None:
    sandbox = await silent(engine)
    for window in (None, Window()):
        with pytest.raises(ValidationFailed, match="there is no folder /app/no where"):
            async with engine.sandboxes.open_process(sandbox, ProcessSpec(("true",), "no where", window=window)):
                pass
    hostile = "$(touch /app/owned); `touch /app/owned`"
    with pytest.raises(ValidationFailed):
        async with engine.sandboxes.open_process(sandbox, ProcessSpec(("true",), hostile)):
            pass
    assert (await execute(engine, sandbox, "ls /app", ENGINE_TIMEOUT, 100)).output == ""


async def test_processes_per_sandbox_are_limited(engine: OciEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builderd.engine.oci.runtime.execute.MAX_OPEN", 1)
    assert MAX_OPEN > 1
    sandbox = await silent(engine)
    async with engine.sandboxes.open_process(sandbox, ProcessSpec(("sleep", "1000"))):
        with pytest.raises(InvalidState, match="already"):
            await execute(engine, sandbox, "true", ENGINE_TIMEOUT, 100)
    assert (await execute(engine, sandbox, "true", ENGINE_TIMEOUT, 100)).exit_code == 0
