"""Large bodies in a process of their own: values and errors are as in this one, and a process that ends is no harm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.patience import patience
from tests.service import MINIMAL

from builderd.api.server import body_parser
from builderd.api.server.body_parser import Body, BodyParser
from builderd.domain.errors import BadRequest, BuilderdError, MachineFault, TooLarge, ValidationFailed
from builderd.domain.resources import Resources
from builderd.schemas.v1.account import NewCredential
from builderd.schemas.v1.builder_parts import NewExecution
from builderd.schemas.v1.builders import NewBuilder
from builderd.schemas.v1.shape import Shape
from builderd.schemas.v1.versions import NewSettings, NewVersion

CONTEXT = {"maximum": Resources(cpu=8, memory=16, disk=100)}
LARGE: dict[str, Any] = {
    **MINIMAL,
    "env": {"PRICE": 3.10, "FLAG": True},
    "resources": {"cpu": 1.5},
    "files": {"a": "grüß\n" * 1000, "b": {"content": "AAEC", "encoding": "base64", "executable": True}},
}


@pytest.fixture(scope="module")
def parser() -> Iterator[BodyParser]:
    made = BodyParser()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("shape", "value"),
    [
        (NewBuilder, LARGE),
        (NewVersion, {name: value for name, value in LARGE.items() if name != "name"}),
        (NewSettings, {"env": {"A": "b"}}),
        (NewExecution, {"command": "cat", "stdin": "x" * 1000, "env": {"N": 1}}),
        (NewCredential, {"values": {"PASSWORD": "secret"}}),
    ],
)
async def test_a_value_is_the_same_as_in_this_process(
    parser: BodyParser, shape: type[Shape], value: dict[str, Any]
) -> None:
    body = json.dumps(value).encode()
    parsed = await parser.take(shape, Body(body), CONTEXT)
    assert parsed == body_parser.take(shape, body, CONTEXT)
    assert parsed.model_fields_set == body_parser.take(shape, body, CONTEXT).model_fields_set


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"{", BadRequest),
        (b'{"a":[' + b"[]," * 300_000 + b"0]}", TooLarge),
        (json.dumps({**LARGE, "port": "80", "nmae": 1}).encode(), ValidationFailed),
    ],
)
async def test_an_error_is_the_same_as_in_this_process(
    parser: BodyParser, body: bytes, kind: type[BuilderdError]
) -> None:
    with pytest.raises(kind) as there:
        await parser.take(NewBuilder, Body(body), CONTEXT)
    with pytest.raises(kind) as here:
        body_parser.take(NewBuilder, body, CONTEXT)
    assert there.value.message == here.value.message
    assert getattr(there.value, "errors", None) == getattr(here.value, "errors", None)


async def test_a_process_that_was_killed_is_a_fault_of_the_machine_and_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parser, body = BodyParser(), json.dumps(LARGE).encode()
    with monkeypatch.context() as patched:
        patched.setattr(body_parser, "_make_pool", lambda: ProcessPoolExecutor(1, initializer=os.abort))
        with pytest.raises(MachineFault) as fault:
            await parser.take(NewBuilder, Body(body), CONTEXT)
    assert fault.value.retry_after
    assert (await parser.take(NewBuilder, Body(body), CONTEXT)).name == MINIMAL["name"]
    parser.close()


SERVICE = """
import asyncio, os, signal, sys
from builderd.api.server.body_parser import BodyParser
from builderd.api.server.body_parser import Body
from builderd.schemas.v1.builder_parts import NewExecution
async def main():
    await BodyParser().take(NewExecution, Body(b'{"command": "ls"}'), {})
    print(os.getpid(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
if __name__ == "__main__":
    asyncio.run(main())
"""


def test_the_process_ends_when_the_service_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "service.py"
    script.write_text(SERVICE)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout, done.stderr
    deadline = time.monotonic() + patience(10)
    while left := [one for one in Path("/proc").glob("[0-9]*") if str(script).encode() in _command_line(one)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def _command_line(process: Path) -> bytes:
    with suppress(OSError):
        return (process / "cmdline").read_bytes()
    return b""
