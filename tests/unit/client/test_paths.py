"""No identifier or path leads a call of the SDK to another resource: each method gets hostile ones."""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.hostile_paths import HOSTILE, OWN, OneBuilder, builder, strays
from tests.unit.client.openapi import operation_of

from builderd import AsyncBuilderd, Builderd, BuilderdError, ValidationFailed
from builderd.client._sync.builder import Builder
from builderd.client.folders import read_folder
from builderd.client.models import BuilderState, lenient

#: Methods that send nothing by themselves.
SILENT = {"Builderd.with_options", "Builderd.close", "Builderd.deploy"}


def objects(client: Builderd) -> Iterator[Any]:
    """The client, a builder, and all parts that they have as an attribute."""
    for one in (client, Builder(client._transport, lenient(BuilderState).model_validate(builder()))):
        yield one
        parts = [value for name, value in vars(one).items() if not name.startswith("_")]
        yield from (part for part in parts if type(part).__module__.startswith("builderd.client._sync"))


def methods(client: Builderd) -> Iterator[tuple[str, Callable[..., Any]]]:
    for one in objects(client):
        for name in vars(type(one)):
            value = getattr(one, name)
            if not name.startswith("_") and inspect.ismethod(value):
                yield f"{type(one).__name__}.{name}", value


def sample(name: str, annotation: str) -> Any:
    """Return a harmless argument."""
    samples: dict[str, Any] = {
        "int": 1,
        "float": 1.0,
        "IO": io.BytesIO(b"x"),
        "Mapping": {},
        "Sequence": ["read"],
        "str | Path": "local",
        "Folder": read_folder(Path("local")),
    }
    if name == "upload_url":
        return f"http://builderd/api/v1/uploads/{OWN}?signature=x"
    return next((value for begin, value in samples.items() if annotation.startswith(begin)), "own")


def call(method: Callable[..., Any], arguments: dict[str, Any]) -> None:
    """Call a method, and use what it returns. What the answers lack is no matter here."""
    with suppress(BuilderdError, ValueError, TypeError, AttributeError, OSError):
        result = method(**arguments)
        if hasattr(result, "__iter__"):
            list(result)
        elif hasattr(result, "__enter__"):
            with result:
                pass


def takes_a_name(annotation: str) -> bool:
    """Texts, and numbers, in whose place a program that checks no types gives a text; not what is on this machine."""
    return annotation.startswith(("str", "int")) and "Path" not in annotation


def cases() -> list[tuple[str, str]]:
    with Builderd("http://builderd", "t") as client:
        return [
            (label, name)
            for label, method in methods(client)
            for name, parameter in inspect.signature(method).parameters.items()
            if takes_a_name(parameter.annotation)
        ]


def fresh(label: str, service: OneBuilder) -> Callable[..., Any]:
    client = Builderd("http://builderd", "t", max_retries=0, transport=httpx2.MockTransport(service))
    return dict(methods(client))[label]


@pytest.mark.parametrize(("label", "name"), cases())
def test_no_argument_leads_to_another_resource(
    label: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("local").mkdir()
    Path("local/main.py").write_text("")
    service = OneBuilder()
    parameters = inspect.signature(fresh(label, service)).parameters
    required = {
        one.name: sample(one.name, one.annotation)
        for one in parameters.values()
        if one.default is one.empty and one.kind is not one.VAR_KEYWORD
    }
    call(fresh(label, service), {**required, name: sample(name, parameters[name].annotation)})
    assert service.requests or label in SILENT
    made = {operation_of(one.method, one.url.path) for one in service.requests}
    for value in HOSTILE:
        service.requests.clear()
        call(fresh(label, service), {**required, name: value})
        assert not strays(service.requests, None if (label, name) == ("Builderd.request", "path") else made), value


def test_the_walk_finds_the_methods() -> None:
    found = {label for label, _ in cases()}
    assert {"Webhooks.delete", "Files.write", "BuilderBackups.restore", "Builder.diff", "Leases.end"} <= found
    assert len(found) > 40


async def test_the_asynchronous_client_refuses_them_with_what_is_wrong() -> None:
    service = OneBuilder()
    async with AsyncBuilderd("http://builderd", "t", transport=httpx2.MockTransport(service)) as client:
        with pytest.raises(ValidationFailed, match=r"'\.\./builders/x'.* has no /"):
            await client.webhooks.delete("../builders/x")
        with pytest.raises(ValidationFailed, match=r"'\.\.'"):
            await client.request("GET", "/builders/%2e%2e/tokens")
        with pytest.raises(ValidationFailed, match="Unicode"):
            await client.credentials.get("\udcff")
        with pytest.raises(ValidationFailed, match="printable"):
            await client.request("GET", "/builders/\0")
    assert service.requests == []


def test_a_file_keeps_its_name() -> None:
    service = OneBuilder()
    with Builderd("http://builderd", "t", transport=httpx2.MockTransport(service)) as client:
        call(client.builders.get(OWN).files.read, {"path": "a b/ü?#%2F.txt"})
    assert service.requests[-1].url.raw_path.decode().endswith("/files/a%20b/%C3%BC%3F%23%252F.txt")
