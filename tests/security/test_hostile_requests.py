"""Hostile requests: each gets its documented status and code, and stores nothing."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import pytest_asyncio
from tests.service import MINIMAL, Service, listening, running_service
from tests.stores import MEMORY

from builderd.core.ids import new_id

#: Against hanging. What an answer takes is measured in benchmarks, not here.
DEADLINE = 20

BUILDERS = "/api/v1/builders"
EXEC = f"{BUILDERS}/{{own}}/exec"
JSON = {"Content-Type": "application/json"}
OK = "print('hello')"


@dataclass(frozen=True)
class Hostile:
    """A request, and what it must be answered. ``errors`` are the fields that a ``validation_error`` names.

    ``path`` may refer to ``{own}`` and ``{foreign}``, two builders' uuids. ``body`` is JSON, or bytes as they are.
    """

    title: str
    status: int
    code: str
    body: Any = None
    errors: tuple[str, ...] = ()
    method: str = "POST"
    path: str = BUILDERS
    headers: dict[str, str] = field(default_factory=lambda: JSON)
    token: str = "write"


def new(**fields: Any) -> dict[str, Any]:
    return {**MINIMAL, "name": "hostile", **fields}


def invalid(title: str, *errors: str, **fields: Any) -> Hostile:
    return Hostile(title, 422, "validation_error", new(**fields), errors)


def raw(name: str, body: bytes, status: int = 400, code: str = "bad_request", **more: Any) -> Hostile:
    return Hostile(name, status, code, body, **more)


def file(path: str, content: Any = OK) -> dict[str, Any]:
    return {"files": {path: content}}


def with_raw(field_text: str) -> bytes:
    """A creation with one more field, as it is written."""
    return (json.dumps(new())[:-1] + f", {field_text}}}").encode()


NAMES = [
    invalid("name that is empty", "name", name=""),
    invalid("name in capitals", "name", name="My-Api"),
    invalid("name with a dot", "name", name="a.example"),
    invalid("name that leaves its folder", "name", name="../x"),
    invalid("name with a hyphen at its end", "name", name="a-"),
    invalid("name that is too long", "name", name="a" * 64),
    invalid("name of another alphabet, encoded", "name", name="xn--bcher-kva"),
    invalid("name with a line break", "name", name="a\n"),
    invalid("name with a NUL", "name", name="a\0b"),
    invalid("name for the shell", "name", name="$(reboot)"),
    invalid("name for the database", "name", name="a'; DROP TABLE builders; --"),
    invalid("name for the proxy's map", "name", name="a b"),
]

PATHS = [
    invalid("path above the folder", "files.../x", **file("../x")),
    invalid("path above the folder further in", "files.a/../../x", **file("a/../../x")),
    invalid("absolute path", "files./etc/passwd", **file("/etc/passwd")),
    invalid("path with an empty segment", "files.a//b", **file("a//b")),
    invalid("path with a . segment", "files.a/./b", **file("a/./b")),
    invalid("path that is .", "files..", **file(".")),
    invalid("path that is ..", "files...", **file("..")),
    invalid("path that is empty", "files.", **file("")),
    invalid("path that ends with a slash", "files.a/", **file("a/")),
    invalid("path with a NUL", "files.a\0b", **file("a\0b")),
    invalid("path that is too long", "files." + "a/" * 512 + "b", **file("a/" * 512 + "b")),
    invalid("name in a path that is too long", "files." + "a" * 256, **file("a" * 256)),
    invalid("file and folder of one name", "files.a", files={"a": OK, "a/b": OK}),
    invalid("no files", "files", files={}),
    invalid("files as an array", "files", files=["main.py"]),
    invalid("file that is a number", "files.a", **file("a", 1)),
    invalid("file that is null", "files.a", **file("a", None)),
    invalid("file with a mode of its own", "files.a.mode", **file("a", {"content": "", "mode": 0o4755})),
    invalid("file in an unknown encoding", "files.a.encoding", **file("a", {"content": "", "encoding": "rot13"})),
    invalid("broken base64", "files.a.content", **file("a", {"content": "a===", "encoding": "base64"})),
    invalid("base64 of another alphabet", "files.a.content", **file("a", {"content": "-_-_", "encoding": "base64"})),
    Hostile("5,000 files", 413, "too_large", new(files={f"{n}": "" for n in range(5000)})),
    Hostile("30 MB of files", 413, "too_large", new(**file("a", "x" * 30_000_000))),
    Hostile("21 MB of files", 413, "too_large", new(**file("a", "x" * 21_000_000))),
    Hostile(
        "21 MB of files in base64",
        413,
        "too_large",
        new(**file("a", {"content": base64.b64encode(bytes(21_000_000)).decode(), "encoding": "base64"})),
    ),
]

FIELDS = [
    invalid("entrypoint that is blank", "entrypoint", entrypoint=" \n\t"),
    invalid("entrypoint with a NUL", "entrypoint", entrypoint="python3\0main.py"),
    invalid("entrypoint that is too long", "entrypoint", entrypoint="x" * 4097),
    invalid("entrypoint as an array", "entrypoint", entrypoint=["python3", "main.py"]),
    invalid("port 0", "port", port=0),
    invalid("port 65536", "port", port=65536),
    invalid("port -1", "port", port=-1),
    invalid("port true", "port", port=True),
    invalid("port 1.5", "port", port=1.5),
    invalid("port as text", "port", port="80"),
    invalid("port null", "port", port=None),
    invalid("port of 300 digits", "port", port=10**300),
    invalid("variable that starts with a digit", "env.1X", env={"1X": ""}),
    invalid("variable with a =", "env.A=B", env={"A=B": ""}),
    invalid("variable with a NUL", "env.A", env={"A": "x\0y"}),
    invalid("variable of the platform", "env.SERVICE_TOKEN", env={"SERVICE_TOKEN": "mine"}),
    invalid("variable that is an object", "env.A", env={"A": {}}),
    invalid("variable that is too long", "env.A", env={"A": "x" * 200_000}),
    invalid("environment that is too large", "env", env={f"A{n}": "x" * 90_000 for n in range(20)}),
    invalid("environment as an array", "env", env=["A=B"]),
    invalid("no cpu", "resources.cpu", resources={"cpu": 0}),
    invalid("negative memory", "resources.memory", resources={"memory": -1}),
    invalid("a billion GB", "resources.disk", resources={"disk": 10**9}),
    invalid("memory as text", "resources.memory", resources={"memory": "1"}),
    invalid("cpu true", "resources.cpu", resources={"cpu": True}),
    invalid("misspelt resource", "resources.ram", resources={"ram": 1}),
    invalid("resources null", "resources", resources=None),
    invalid("unknown job type", "job_type", job_type="cron"),
    invalid("unknown visibility", "visibility", visibility="secret"),
    invalid("unknown isolation", "isolation", isolation="none"),
    invalid("negative interval", "auto_stop_interval", auto_stop_interval=-1),
    invalid("interval that no database keeps", "backup_interval_hours", backup_interval_hours=2**63),
    invalid("flag as text", "skip_qa", skip_qa="false"),
    invalid("credential that is not there", "credentials.0", credentials=["../../etc/shadow"]),
    invalid("credentials as text", "credentials", credentials="A"),
    invalid("unknown field", "entrypiont", entrypiont="x"),
    invalid("prototype of JavaScript", "__proto__", __proto__={"admin": True}),
    Hostile("nothing", 422, "validation_error", {}, ("name", "files")),
    Hostile("a million unknown fields", 413, "too_large", {f"x{n}": 0 for n in range(1_000_000)}),
    invalid("array of 100,000", "credentials", credentials=[0] * 100_000),
]

BODIES = [
    raw("empty body", b""),
    raw("broken JSON", b'{"name": "a"'),
    raw("JSON that is an array", b"[]"),
    raw("JSON that is null", b"null"),
    raw("two values", b"{} {}"),
    raw("duplicate keys", with_raw('"port": 1, "port": 2')),
    raw("duplicate file", b'{"name": "a", "entrypoint": "x", "files": {"a": "1", "a": "2"}}'),
    raw("NaN", with_raw('"resources": {"cpu": NaN}')),
    raw("Infinity", with_raw('"resources": {"cpu": Infinity}')),
    raw("number beyond all bounds", with_raw('"resources": {"cpu": 1e999}')),
    raw("number of 100,000 digits", with_raw('"port": ' + "9" * 100_000)),
    raw("half a surrogate pair", with_raw(r'"env": {"A": "\ud800"}')),
    raw("invalid UTF-8", b'{"name": "\xff\xfe"}'),
    raw("UTF-16", json.dumps(new()).encode("utf-16")),
    raw("deep nesting", b'{"a":' * 50_000),
    raw("arrays in arrays", b'{"a":' + b"[" * 50_000),
    raw("a million arrays", b'{"a":[' + b"[]," * 1_000_000 + b"0]}", 413, "too_large"),
    raw("30 MB of spaces", b" " * 30_000_000, 413, "too_large"),
    raw("form", b"name=a", headers={"Content-Type": "application/x-www-form-urlencoded"}),
    raw("XML", b"<a/>", headers={"Content-Type": "application/xml"}),
    raw("compressed", b"\x1f\x8b", headers={**JSON, "Content-Encoding": "gzip"}),
    raw("another character set", b"{}", headers={"Content-Type": "application/json; charset=utf-7"}),
    Hostile(
        "retry key that is too long",
        422,
        "validation_error",
        new(),
        ("Idempotency-Key",),
        headers={**JSON, "Idempotency-Key": "x" * 300},
    ),
]

CALLERS = [
    Hostile("no token", 401, "unauthenticated", new(), token=""),
    Hostile("unknown token", 401, "unauthenticated", new(), token="bd_" + "x" * 43),
    Hostile("token for the database", 401, "unauthenticated", new(), token="' OR ''='"),
    Hostile("token of 30 KB", 401, "unauthenticated", new(), token="x" * 30_000),
    Hostile("no token and 30 MB", 401, "unauthenticated", b" " * 30_000_000, token=""),
    Hostile("token that only reads", 403, "forbidden", new(), token="read"),
    Hostile("gate left out without the scope", 403, "forbidden", new(skip_review=True)),
    Hostile("service token", 401, "unauthenticated", new(), token="service"),
    *[
        Hostile(
            f"foreign builder: {method} {call}",
            404,
            "not_found",
            body,
            method=method,
            path=f"{BUILDERS}/{{foreign}}{call}",
        )
        for method, call, body in (
            ("GET", "", None),
            ("GET", "/logs", None),
            ("GET", "/logs?follow=true", None),
            ("POST", "/start", None),
            ("POST", "/stop", None),
            ("POST", "/restart", None),
            ("POST", "/exec", {"command": "id"}),
            ("DELETE", "", None),
        )
    ],
    Hostile("unknown builder", 404, "not_found", method="DELETE", path=f"{BUILDERS}/{new_id()}"),
    Hostile("uuid for the database", 404, "not_found", method="GET", path=f"{BUILDERS}/'%20OR%20''='"),
    Hostile("uuid with a NUL", 404, "not_found", method="GET", path=f"{BUILDERS}/%00"),
    Hostile("uuid that leaves its place", 404, "not_found", method="GET", path=f"{BUILDERS}/..%2f..%2fhealthz"),
    Hostile("uuid of 30 KB", 404, "not_found", method="GET", path=f"{BUILDERS}/{'x' * 30_000}"),
    Hostile("taken name", 409, "name_taken", {**MINIMAL, "files": {"other": ""}}),
    Hostile("method that no call takes", 405, "method_not_allowed", method="TRACE"),
    Hostile("method that does not exist", 400, "bad_request", method="BREW"),
    Hostile("call of another time", 404, "not_found", method="GET", path="/api/v2/builders"),
    Hostile("command with a NUL", 422, "validation_error", {"command": "a\0"}, ("command",), path=EXEC),
    Hostile(
        "timeout without an end",
        422,
        "validation_error",
        {"command": "id", "timeout": 10**9},
        ("timeout",),
        path=EXEC,
    ),
    Hostile("2 MB of command", 422, "validation_error", {"command": "x" * 2_000_000}, ("command",), path=EXEC),
    Hostile(
        "page without an end",
        422,
        "validation_error",
        errors=("page", "per_page"),
        method="GET",
        path=f"{BUILDERS}?page={'9' * 30}&per_page=1000000",
    ),
]

TABLE = [*NAMES, *PATHS, *FIELDS, *BODIES, *CALLERS]

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True)
class Target:
    service: Service
    url: str
    tokens: dict[str, str]
    uuids: dict[str, str]


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    params=["memory", pytest.param("postgres", marks=[pytest.mark.postgres, pytest.mark.slow])],
)
async def target(request: pytest.FixtureRequest) -> AsyncIterator[Target]:
    """One service for all of them: what one of them left behind would show."""
    with ExitStack() as stack:
        postgres = request.param == "postgres"
        url = stack.enter_context(request.getfixturevalue("postgres_server").database()) if postgres else MEMORY
        async with running_service(url) as service, listening(service.app) as door:
            own = (await service.client(service.write).post(BUILDERS, json=MINIMAL)).json()["data"]
            foreign = (await service.client(service.other).post(BUILDERS, json=MINIMAL)).json()["data"]
            tokens = {"write": service.write, "read": service.read, "service": own["service_token"]}
            yield Target(service, door, tokens, {"own": own["uuid"], "foreign": foreign["uuid"]})


@pytest.mark.parametrize("hostile", TABLE, ids=lambda hostile: hostile.title)
async def test_hostile_request_gets_documented_answer_and_stores_nothing(target: Target, hostile: Hostile) -> None:
    before = await target.service.kept()
    async with asyncio.timeout(DEADLINE):
        response = await send(target, hostile)
    body = response.json()
    assert (response.status_code, body["code"]) == (hostile.status, hostile.code)
    assert body["success"] is False
    assert sorted(body.get("errors", ())) == sorted(hostile.errors)
    assert body["message"]
    assert len(response.content) < 100_000
    assert await target.service.kept() == before


async def send(target: Target, hostile: Hostile) -> httpx.Response:
    secret = target.tokens.get(hostile.token, hostile.token)
    headers = hostile.headers if hostile.body is not None else {}
    content = hostile.body if isinstance(hostile.body, bytes) else json.dumps(hostile.body).encode()
    async with httpx.AsyncClient(base_url=target.url, timeout=DEADLINE, trust_env=False) as client:
        return await client.request(
            hostile.method,
            hostile.path.format(**target.uuids),
            headers={**headers, **({"Authorization": f"Bearer {secret}"} if secret else {})},
            content=content if hostile.body is not None else None,
        )


async def test_chunked_body_is_rejected_at_the_size_limit(target: Target) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"name": "'
        for _ in range(800):
            yield b"a" * 65_536

    before = await target.service.kept()
    async with asyncio.timeout(DEADLINE), target.service.client(target.service.write, target.url) as client:
        response = await client.post(BUILDERS, content=pieces(), headers=JSON)
    assert (response.status_code, response.json()["code"]) == (413, "too_large")
    assert await target.service.kept() == before


async def test_endless_body_is_disconnected(target: Target) -> None:
    place = urlsplit(target.url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    head = f"POST {BUILDERS} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {target.service.write}\r\n"
    writer.write(f"{head}Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    sent = 0
    async with asyncio.timeout(DEADLINE):
        with suppress(ConnectionError):
            while True:
                writer.write(b"10000\r\n" + b"a" * 65_536 + b"\r\n")
                await writer.drain()
                sent += 65_536
    assert sent < 150_000_000
    writer.close()
    await asyncio.gather(writer.wait_closed(), return_exceptions=True)
    assert reader.at_eof() or reader.exception()


async def test_all_validation_errors_are_in_one_answer(target: Target) -> None:
    body = {
        "name": "A",
        "entrypoint": " ",
        "files": {"../x": "", "ok": 1},
        "port": True,
        "env": {"1": "", "PORT": "1"},
        "resources": {"cpu": 0, "memory": "x"},
        "isolation": "none",
        "what": 1,
    }
    async with target.service.client(target.service.write, target.url) as client:
        response = await client.post(BUILDERS, json=body)
    fields = "what name entrypoint files.../x files.ok port env.1 env.PORT resources.cpu resources.memory isolation"
    assert sorted(response.json()["errors"]) == sorted(fields.split())


async def test_service_works_after_hostile_requests(target: Target) -> None:
    async with target.service.client(target.service.write, target.url) as client:
        created = await client.post(BUILDERS, json={**MINIMAL, "name": "after-all"})
        assert created.status_code == 201
        assert (await client.delete(created.headers["location"])).status_code == 200
        assert (await client.get(f"{BUILDERS}/{target.uuids['own']}")).json()["data"]["status"] == "running"


async def test_table_of_hostile_requests_has_unique_names() -> None:
    names: list[str] = [hostile.title for hostile in TABLE]
    assert len(names) >= 40
    assert len(names) == len(set(names))
