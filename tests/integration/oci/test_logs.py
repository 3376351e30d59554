"""Logs of apps through a real shim, and terminals beside a running app."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.contract.engine import apps
from tests.contract.engine.apps import PORT, App
from tests.engines import (
    ENGINE_TIMEOUT,
    RuncEngine,
    StrongEngine,
    execute,
    make_spec,
    prepared,
    until_listening,
    until_state,
)

from builderd.core.errors import InvalidState, ValidationFailed
from builderd.core.ids import SandboxId
from builderd.engine.oci.engine.engine import OciEngine
from builderd.engine.oci.runtime.execute import MAX_OPEN
from builderd.engine.port import EngineOptions, Process
from builderd.executions.model import ProcessSpec, Window, shell
from builderd.sandboxes.model import LogStream, SandboxState

pytestmark = pytest.mark.root

TALKING = r"""
echo out; echo err >&2; printf 'no end '; sleep 0.3; echo 'of the line'
head -c 30000 /dev/zero | tr '\0' x; echo
printf '\377bytes\n'; printf 'last words'
"""
SECONDS_OF_FLOOD = 2
FLOOD = f"""
echo first
python3 - <<'END'
import os, time
line, end = b"x" * 99 + b"\\n", time.time() + {SECONDS_OF_FLOOD}
while time.time() < end:
    os.write(1, line)
END
echo last
"""
LOG_LIMIT = 1_000_000


def app(command: str) -> App:
    return App(command, apps.SILENT.behaviour)


async def test_lines_are_whole_in_order_and_of_their_stream(engine: OciEngine) -> None:
    spec = await make_spec(engine, app(TALKING))
    started = await engine.sandboxes.start(spec)
    await until_state(engine, spec.id, SandboxState.EXITED)
    lines = (await engine.logs.read_log(spec.id)).lines
    out = [line.text for line in lines if line.stream is LogStream.STDOUT]
    assert out == ["out", "no end ", "of the line", "x" * 30_000, "\ufffdbytes", "last words"]
    assert [line.text for line in lines if line.stream is LogStream.STDERR] == ["err"]
    assert started.started_at
    assert all(line.time >= started.started_at.replace(microsecond=0) for line in lines)


async def test_a_flood_is_held_back_and_its_beginning_and_end_are_kept(settings: EngineOptions) -> None:
    """And a neighbour answers all along."""
    async with prepared(replace(settings, log_limit=LOG_LIMIT)) as engine:
        neighbour = await make_spec(engine, apps.SERVER)
        await engine.sandboxes.start(neighbour)
        await until_listening(engine, neighbour.id)
        spec = await make_spec(engine, app(FLOOD))
        await engine.sandboxes.start(spec)
        ip = (await engine.sandboxes.report(neighbour.id)).ip
        assert ip
        folder, answers, largest = settings.data_dir / "logs" / spec.builder_id, 0, 0
        async with asyncio.timeout(ENGINE_TIMEOUT + SECONDS_OF_FLOOD):
            while (await engine.sandboxes.report(spec.id)).state is SandboxState.RUNNING:
                answers += await answer(ip) == b"HTTP/1.0 200"
                largest = max(largest, size_of(folder))
                await asyncio.sleep(0.05)
        assert answers > 0
        assert LOG_LIMIT < largest < 3.2 * LOG_LIMIT, "the first file, the newest, and its successor being begun"
        last = await engine.logs.read_log(spec.id, tail=1)
        assert [line.text for line in last.lines] == ["last"]
        lines = (await engine.logs.read_log(spec.id)).lines
        assert lines[0].text == "first"


async def answer(ip: str) -> bytes:
    reader, writer = await asyncio.open_connection(ip, PORT)
    try:
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        return await reader.read(12)
    finally:
        writer.close()


def size_of(folder: Path) -> int:
    """Return the size of the files in a folder, each counted once; one may go while they are counted."""
    sizes: dict[int, int] = {}
    for file in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            status = file.stat()
            sizes[status.st_ino] = status.st_size
    return sum(sizes.values())


SH = ProcessSpec(("/bin/sh",), env={"PS1": "> "}, window=Window(100, 30))
KINDS = {"crun": OciEngine, "runc": RuncEngine, "gvisor": StrongEngine}
COUNT = "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -c 'sleep [3]133[7-9]'"


@pytest.fixture(params=["crun", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("runc", "gvisor"))])
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
