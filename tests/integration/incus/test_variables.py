"""Variables of apps, commands and tools: neither the member's processes nor Incus's operations show them to others."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from tests.contract.engine import apps
from tests.engines import make_spec

from builderd.adapters.engines.incus.engine import IncusEngine
from builderd.domain.processes import ProcessSpec, Window
from builderd.ports.engine import Tool

pytestmark = [pytest.mark.root, pytest.mark.slow]

NEEDLE = "needle-in-a-variable"


def arguments() -> list[str]:
    """Return the arguments of all processes of this machine that have the needle."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if NEEDLE in text:
            found.append(text)
    return found


async def shown_by_incus(engine: IncusEngine) -> str:
    client = engine._here.client
    asked = (client.get("/operations", recursion="1"), client.get("/instances", recursion="2"))
    return json.dumps(await asyncio.gather(*asked))


@pytest.mark.parametrize("window", [None, Window()])
async def test_variables_of_an_app_and_its_commands_are_shown_to_nobody(
    engine: IncusEngine, window: Window | None
) -> None:
    spec = await make_spec(engine, apps.SILENT, env={"PORT": "8000", "OF_APP": NEEDLE})
    await engine.sandboxes.start(spec)
    command = ProcessSpec(
        ("/bin/sh", "-c", "echo $OF_APP $OF_COMMAND; read line"), env={"OF_COMMAND": NEEDLE}, window=window
    )
    async with engine.sandboxes.open_process(spec.id, command) as process:
        output = b""
        while output.count(b"needle") < 2:
            output += await process.read()
        assert arguments() == []
        assert NEEDLE not in await shown_by_incus(engine)
        await process.write(b"end\n")
        while await process.read():
            pass
        assert await process.wait() == 0
    assert output.decode().split() == [NEEDLE, NEEDLE]


async def test_variables_of_a_tool_are_shown_to_nobody(engine: IncusEngine) -> None:
    begun: asyncio.Queue[str] = asyncio.Queue()
    tool = Tool(("/bin/sh", "-c", "echo $PASSWORD; exec sleep 5"), {"PASSWORD": NEEDLE}, timeout_seconds=60)
    running = asyncio.create_task(engine.tools.run_tool(tool, begun.put_nowait))
    assert await begun.get() == NEEDLE
    assert arguments() == []
    assert NEEDLE not in await shown_by_incus(engine)
    assert (await running).exit_code == 0
