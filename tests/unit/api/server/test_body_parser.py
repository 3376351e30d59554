"""Large bodies in a process of their own: values and errors are as in this one, and a process that ends is no harm."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.service import MINIMAL

from builderd.api.server import json_parsing
from builderd.api.server.body_parser import BodyParser
from builderd.domain.errors import BadRequest, BuilderdError, MachineFault, TooLarge, ValidationFailed
from builderd.domain.resources import Resources
from builderd.schemas.v1.builders import NewBuilder
from builderd.schemas.v1.credentials import NewCredential
from builderd.schemas.v1.executions import NewExecution
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
    parsed = await parser.take(shape, body, CONTEXT)
    assert parsed == json_parsing.take(shape, body, CONTEXT)
    assert parsed.model_fields_set == json_parsing.take(shape, body, CONTEXT).model_fields_set


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
        await parser.take(NewBuilder, body, CONTEXT)
    with pytest.raises(kind) as here:
        json_parsing.take(NewBuilder, body, CONTEXT)
    assert there.value.message == here.value.message
    assert getattr(there.value, "errors", None) == getattr(here.value, "errors", None)


async def test_a_process_that_was_killed_is_a_fault_of_the_machine_and_replaced(
    parser: BodyParser, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = json.dumps(LARGE).encode()
    await parser.take(NewBuilder, body, CONTEXT)
    process = parser._process
    assert process
    process.kill()
    monkeypatch.setattr(process, "poll", lambda: None)
    with pytest.raises(MachineFault) as fault:
        await parser.take(NewBuilder, body, CONTEXT)
    assert fault.value.retry_after
    assert (await parser.take(NewBuilder, body, CONTEXT)).name == MINIMAL["name"]


async def test_the_process_ends_with_its_input_as_when_the_service_is_killed() -> None:
    parser = BodyParser()
    try:
        await parser.take(NewExecution, b'{"command": "ls"}', CONTEXT)
        process = parser._process
        assert process
        assert process.stdin
        process.stdin.close()
        assert process.wait(30) == 0
    finally:
        parser.close()
