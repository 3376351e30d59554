"""Logs of apps through a real shim."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from pathlib import Path

import pytest
from tests.contract.engine import apps
from tests.contract.engine.apps import PORT, App
from tests.engines import ENGINE_TIMEOUT, make_spec, prepared, until_listening, until_state

from builderd.engine.oci.engine.engine import OciEngine
from builderd.engine.port import EngineOptions
from builderd.sandboxes.model import LogStream, SandboxState

pytestmark = pytest.mark.root

TALKING = r"""
echo out; echo err >&2; printf 'no end '; sleep 0.3; echo 'of the line'
head -c 30000 /dev/zero | tr '\0' x; echo
printf '\377bytes\n'; printf 'last words'
"""
SECONDS_OF_FLOOD = 5
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
