"""Each call of the OpenAPI document: who may make it, and what it does not know."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import pytest_asyncio
from tests.document import DOCUMENT
from tests.service import MINIMAL, Service, running_service

from builderd.core.ids import new_id
from builderd.tokens.model import Scope

API = "/api/v1"
FOR_ADMINISTRATORS = {
    *("GET /tokens", "POST /tokens", "DELETE /tokens/{id}"),
    *("PUT /spending-cap", "PUT /builders/{uuid}/spending-cap"),
}
#: Parameters of paths that are not ids.
PLACES = {"old": "1", "new": "1", "port": "8000", "host": "app.example.com", "path": "main.py"}

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True)
class Operation:
    """A call of the document, with its path below ``API``."""

    method: str
    path: str
    document: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def example(self) -> dict[str, Any] | None:
        """Return the body that the document shows, None for one without JSON."""
        content = self.document.get("requestBody", {}).get("content", {})
        return content["application/json"]["example"] if "application/json" in content else None

    @property
    def parameters(self) -> list[str]:
        """Return the names of the parameters in its path."""
        return [one["name"] for one in self.document.get("parameters", ()) if one["in"] == "path"]

    @property
    def has_query(self) -> bool:
        return any(one["in"] == "query" for one in self.document.get("parameters", ()))


def _operations() -> Iterator[Operation]:
    for path, methods in DOCUMENT["paths"].items():
        for method, document in methods.items():
            if "403" in document["responses"]:
                yield Operation(method.upper(), path.removeprefix(API), document)


OPERATIONS = list(_operations())
each = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: one.name)
OF_SOMETHING = [one for one in OPERATIONS if one.parameters and one.name != "PUT /credentials/{name}"]
each_of_something = pytest.mark.parametrize("operation", OF_SOMETHING, ids=lambda one: one.name)


@dataclass(frozen=True)
class World:
    """A service with one of everything, whose ids are the parameters of its path."""

    service: Service
    admin: str
    stranger: str
    ids: dict[str, str]

    async def call(self, operation: Operation, secret: str | None, query: str = "", **given: Any) -> httpx.Response:
        ids = {**PLACES, **self.ids, **given.pop("ids", {})}
        if operation.path.startswith(("/tokens/", "/webhooks/")):
            ids["id"] = ids[operation.path.split("/")[1]]
        body = {"json": operation.example} if operation.example is not None else {"content": b""}
        async with self.service.client(secret) as client:
            path = f"{API}{operation.path.format(**ids)}{query}"
            return await client.request(operation.method, path, **{**body, **given})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[World]:
    async with running_service() as service:
        admin = await service.token("acme", Scope.ADMIN)
        stranger = await service.token("stranger", Scope.ADMIN)
        client = service.client(admin)

        async def make(method: str, path: str, **body: Any) -> dict[str, Any]:
            response = await client.request(method, f"{API}{path}", json=body)
            assert response.is_success, response.text
            made: dict[str, Any] = response.json()["data"]
            return made

        uuid = (await make("POST", "/builders", **MINIMAL))["uuid"]
        builder = f"/builders/{uuid}"
        await make("PUT", "/credentials/db", values={"PASSWORD": "secret"})
        await make("POST", f"{builder}/domains", host=PLACES["host"])
        ids = {
            "uuid": uuid,
            "name": "db",
            "tokens": (await make("POST", "/tokens", name="made", scopes=["read"]))["id"],
            "webhooks": (await make("POST", "/webhooks", url="https://hooks.example.com/"))["id"],
            "upload_id": (await make("POST", "/uploads"))["upload_id"],
            "backup_id": (await make("POST", f"{builder}/backups"))["id"],
            "lease": (await make("POST", f"{builder}/leases", reason="busy", seconds=600))["id"],
            "link": (await make("POST", f"{builder}/preview-links"))["id"],
        }
        yield World(service, admin, stranger, ids)


@each
async def test_a_call_without_a_token_is_unauthenticated(world: World, operation: Operation) -> None:
    refused = await world.call(operation, None)
    assert (refused.status_code, refused.json()["code"]) == (401, "unauthenticated")
    assert refused.headers["www-authenticate"]


@each
async def test_a_token_that_only_reads_changes_nothing(world: World, operation: Operation) -> None:
    before = await world.service.kept()
    answer = await world.call(operation, world.service.read)
    if operation.method != "GET" or operation.name in FOR_ADMINISTRATORS:
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    else:
        assert answer.status_code != 403
    assert await world.service.kept() == before


@pytest.mark.parametrize("name", sorted(FOR_ADMINISTRATORS))
async def test_a_token_that_writes_is_no_administrators(world: World, name: str) -> None:
    (operation,) = (one for one in OPERATIONS if one.name == name)
    refused = await world.call(operation, world.service.write)
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")


@each_of_something
async def test_a_stranger_finds_nothing_and_does_not_learn_that_it_is_there(world: World, operation: Operation) -> None:
    before = await world.service.kept()
    refused = await world.call(operation, world.stranger)
    assert (refused.status_code, refused.json()["code"]) == (404, "not_found"), refused.text
    if "uuid" in operation.parameters:
        assert refused.json() == (await world.call(operation, world.stranger, ids={"uuid": new_id()})).json()
    assert await world.service.kept() == before


async def test_a_strangers_lists_have_nothing_of_others(world: World) -> None:
    stranger = world.service.client(world.service.other)
    for path in ("/builders", "/credentials", "/webhooks", "/backups", "/events"):
        assert (await stranger.get(f"{API}{path}")).json()["data"] == []
    assert (await stranger.get(f"{API}/builders/spending")).json()["data"]["deployments"] == []
    assert {one["cost"] for one in (await stranger.get(f"{API}/spending/days")).json()["data"]["days"]} == {0.0}
    tokens = (await world.service.client(world.stranger).get(f"{API}/tokens")).json()["data"]
    assert world.ids["tokens"] not in {one["id"] for one in tokens}


@each_of_something
async def test_an_unknown_id_is_not_found(world: World, operation: Operation) -> None:
    unknown = {name: PLACES.get(name, new_id()) for name in (*operation.parameters, "tokens", "webhooks")}
    refused = await world.call(operation, world.admin, ids=unknown)
    assert (refused.status_code, refused.json()["code"]) == (404, "not_found"), refused.text


@pytest.mark.parametrize("operation", [one for one in OPERATIONS if one.has_query], ids=lambda one: one.name)
async def test_an_unknown_parameter_is_named(world: World, operation: Operation) -> None:
    refused = await world.call(operation, world.admin, "?wrong=1")
    assert (refused.status_code, list(refused.json()["errors"])) == (422, ["wrong"]), refused.text


@pytest.mark.parametrize("operation", [one for one in OPERATIONS if one.example is not None], ids=lambda one: one.name)
async def test_an_unknown_field_is_named(world: World, operation: Operation) -> None:
    refused = await world.call(operation, world.admin, json={**operation.example, "wrong": 1})  # type: ignore[dict-item]
    assert (refused.status_code, list(refused.json()["errors"])) == (422, ["wrong"]), refused.text


#: Values that break a rule, by the call: in its query, or in place of those of its example. The wrong field is named.
WRONG: dict[str, tuple[dict[str, Any], ...]] = {
    "GET /builders": (
        *({"page": "0"}, {"page": "x"}, {"page": "1.5"}, {"page": "9" * 20}, {"per_page": "0"}, {"per_page": "101"}),
        *({"status": "gone"}, {"job_type": "x"}, {"sort": "cost"}, {"name": "A"}, {"name": "\0"}),
    ),
    "GET /builders/{uuid}/logs": (
        *({"tail": "-1"}, {"tail": "x"}, {"tail": "100001"}, {"stream": "stdin"}, {"follow": "perhaps"}),
        *({"since": "yesterday"}, {"since": "2026-01-31T12:00:00"}, {"since": "2026-13-31T12:00:00Z"}),
        *({"since": "0001-01-01T00:00:00+14:00"}, {"since": "1700000000"}),
    ),
    "GET /builders/{uuid}/metrics": ({"hours": "0"}, {"hours": "25"}, {"step": "1s"}),
    "GET /events": (
        *({"type": ""}, {"type": "Builder.Status"}, {"type": "builder.status,"}, {"type": "\0"}),
        *({"type": "a," * 600 + "a"}, {"page": "0"}, {"per_page": "101"}, {"since": "yesterday"}),
    ),
    "GET /builders/spending": (
        *({"from": "x"}, {"to": "2026-01-01"}, {"from": "9999-12-31T23:59:59-14:00"}, {"page": "0"}),
        {"per_page": "101"},
    ),
    "GET /spending/days": (
        *({"from": "x"}, {"from": "2026-02-30"}, {"from": "0000-01-01"}, {"from": "2026-01-01T00:00:00Z"}),
        *({"from": "1767225600"}, {"from": "\u0662\u0660\u0662\u0666-\u0660\u0661-\u0660\u0661"}),
    ),
    "GET /builders/{uuid}/files": ({"page": "0"}, {"page": "101"}, {"per_page": "1001"}),
    "PUT /builders/{uuid}": ({"name": "another"}, {"job_type": "one_time"}, {"port": "80"}, {"files": {}}),
    "PUT /spending-cap": ({"monthly": -1}, {"monthly": "5"}, {"monthly": True}, {"monthly": 1.001}, {"monthly": 1e300}),
    "POST /builders/{uuid}/exec": (
        *({"command": " "}, {"command": ["ls"]}, {"command": "x" * 100_001}, {"stream": "yes"}),
        *({"timeout": 0}, {"timeout": 601}, {"timeout": "60"}, {"timeout": True}, {"env": {"A=B": "c"}}),
        *({"stdin": 5}, {"stdin": "x" * 1_000_001}, {"cwd": ""}, {"cwd": "a\0b"}, {"cwd": "x" * 4097}),
    ),
    "POST /builders/{uuid}/ssh": tuple({"expires_minutes": one} for one in (4, 10081, "60", 5.5, None, True)),
    "POST /builders/{uuid}/leases": (
        *({"seconds": one} for one in (0, 3601, "60", 1.5, None)),
        *({"reason": "\0"}, {"reason": "x" * 1001}),
    ),
    "POST /builders/{uuid}/preview-links": ({"expires_minutes": 0}, {"port": 70000}, {"expires_minutes": 10**9}),
    "POST /builders/{uuid}/domains": tuple(
        {"host": one}
        for one in (
            *("", "localhost", "*.example.com", "shop.example.com:80", "<b>.example.com", "a b.example.com"),
            *("x.localhost", "a." * 127 + "com", 7, None),
        )
    ),
    "POST /builders/{uuid}/review/accept": (
        *({"fingerprint": "x"}, {"fingerprint": "A" * 32}, {"reason": " "}, {"reason": ""}, {"expires": "soon"}),
        *({"expires": 1893456000}, {"expires": True}),
    ),
    "POST /tokens": ({"name": ""}, {"name": "a\nb"}, {"scopes": []}, {"scopes": ["all"]}),
    "POST /webhooks": (
        *({"url": "x"}, {"url": "file:///etc/passwd"}, {"url": 1}, {"secret": "short"}, {"secret": "whsec_*"}),
        *({"events": []}, {"events": ["Builder"]}, {"events": ["*"] * 51}, {"events": "*"}),
    ),
}


@pytest.mark.parametrize("operation", [one for one in OPERATIONS if one.name in WRONG], ids=lambda one: one.name)
async def test_a_value_that_breaks_a_rule_is_named(world: World, operation: Operation) -> None:
    before = await world.service.kept()
    for change in WRONG[operation.name]:
        given: dict[str, Any] = (
            {"json": {**operation.example, **change}} if operation.example is not None else {"params": change}
        )
        refused = await world.call(operation, world.admin, "", **given)
        assert (refused.status_code, refused.json()["code"]) == (422, "validation_error"), change
        (field,) = refused.json()["errors"]
        assert field.partition(".")[0] == next(iter(change)), change
    assert await world.service.kept() == before
