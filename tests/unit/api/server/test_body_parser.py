"""Large bodies in a process of their own: values and errors are as in this one, and a process that ends is no harm."""

from __future__ import annotations

import base64
import json
import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.service import MINIMAL

from builderd.api.server import body_parser
from builderd.api.server.body_parser import Body, BodyParser
from builderd.domain.errors import BadRequest, BuilderdError, MachineFault, TooLarge, ValidationFailed
from builderd.domain.resources import Resources
from builderd.schemas.v1.account import NewCredential
from builderd.schemas.v1.builder_parts import NewExecution
from builderd.schemas.v1.builders import NewBuilder
from builderd.schemas.v1.files import bundle_files
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


def most_memory(pid: int) -> int:
    """Return the most bytes of memory that the process has had."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) << 10


async def test_large_files_stay_on_the_disk(parser: BodyParser) -> None:
    contents = {"a": random.Random(1).randbytes(8_000_000), "b": random.Random(2).randbytes(6_000_000), "c": b"small"}
    files = {
        name: {"content": base64.b64encode(content).decode(), "encoding": "base64"}
        for name, content in contents.items()
    }
    await parser.take(NewExecution, Body(b'{"command": "ls"}'), CONTEXT)
    assert parser._process
    before = most_memory(parser._process.pid)
    body = Body()
    await body.add(json.dumps({**MINIMAL, "files": files}).encode())
    tracemalloc.start()
    parsed = await parser.take(NewBuilder, body, CONTEXT)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4_000_000
    assert most_memory(parser._process.pid) < before + 4_000_000, "what a body took ends with a child"
    parts = bundle_files(parsed.files)
    assert {file.path: file.content for file in parts} == contents
    assert [type(file.source) is bytes for file in parts] == [False, False, True]
    assert parts[0].source.read(7_999_990, 100) == contents["a"][-10:]  # type: ignore[union-attr]


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
    parser: BodyParser, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = json.dumps(LARGE).encode()
    await parser.take(NewBuilder, Body(body), CONTEXT)
    process = parser._process
    assert process
    process.kill()
    monkeypatch.setattr(process, "poll", lambda: None)
    with pytest.raises(MachineFault) as fault:
        await parser.take(NewBuilder, Body(body), CONTEXT)
    assert fault.value.retry_after
    assert (await parser.take(NewBuilder, Body(body), CONTEXT)).name == MINIMAL["name"]


async def test_the_process_ends_with_its_input_as_when_the_service_is_killed() -> None:
    parser = BodyParser()
    try:
        await parser.take(NewExecution, Body(b'{"command": "ls"}'), CONTEXT)
        process = parser._process
        assert process
        assert process.stdin
        process.stdin.close()
        assert process.wait(30) == 0
    finally:
        parser.close()
