"""Uploads, over HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import io
import tarfile
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from tests.service import MINIMAL, Service

UPLOADS, BUILDERS = "/api/v1/uploads", "/api/v1/builders"


def packed(**files: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name.replace("_", "."))
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


CODE = packed(main_py=b"print('hello')")
SHA256 = hashlib.sha256(CODE).hexdigest()


@pytest.fixture
async def place(client: httpx.AsyncClient) -> dict[str, Any]:
    response = await client.post(UPLOADS, json={})
    assert response.status_code == 201
    data: dict[str, Any] = response.json()["data"]
    return data


@pytest.fixture
def sender(service: Service) -> httpx.AsyncClient:
    """Return a client without a token."""
    return service.client(None)


def from_upload(place: dict[str, Any], **changes: Any) -> dict[str, Any]:
    body = {name: value for name, value in MINIMAL.items() if name != "files"}
    return {**body, "source": {"upload_id": place["upload_id"]}, **changes}


async def test_a_builder_is_made_of_an_upload(
    client: httpx.AsyncClient, sender: httpx.AsyncClient, place: dict[str, Any]
) -> None:
    sent = await sender.put(place["upload_url"], content=CODE, headers={"X-Content-Sha256": SHA256.upper()})
    assert sent.status_code == 200, sent.text
    assert {name: sent.json()["data"][name] for name in ("received", "size", "complete")} == {
        "received": len(CODE),
        "size": len(CODE),
        "complete": True,
    }
    created = await client.post(BUILDERS, json=from_upload(place))
    assert created.status_code == 201, created.text
    path = f"{BUILDERS}/{created.json()['data']['uuid']}"
    assert (await client.get(f"{path}/files/main.py")).content == b"print('hello')"
    deployed = await client.put(path, json={"source": {"upload_id": place["upload_id"]}})
    assert deployed.status_code == 200, deployed.text


async def test_refused_calls_leave_no_code_of_an_upload_behind(
    client: httpx.AsyncClient, sender: httpx.AsyncClient, place: dict[str, Any], service: Service
) -> None:
    await sender.put(place["upload_url"], content=CODE)
    wrong = from_upload(place, root="nope")
    assert (await client.post(BUILDERS, json=wrong)).json()["errors"].keys() == {"root"}
    assert await service.application.bundles.hashes() == set()
    url = (await client.post(BUILDERS, json={**MINIMAL, "files": {"main.py": "1"}})).headers["location"]
    before = await service.application.bundles.hashes()
    body = {"source": wrong["source"], "root": "nope"}
    assert (await client.put(url, json=body)).json()["errors"].keys() == {"root"}
    assert await service.application.bundles.hashes() == before
    # A version has it: it stays.
    assert (await client.put(url, json={"source": wrong["source"]})).status_code == 200
    before = await service.application.bundles.hashes()
    assert (await client.put(url, json=body)).status_code == 422
    assert (await client.post(BUILDERS, json=wrong | {"name": "third"})).status_code == 422
    assert await service.application.bundles.hashes() == before


async def test_interrupted_upload_is_resumed(
    client: httpx.AsyncClient, sender: httpx.AsyncClient, place: dict[str, Any]
) -> None:
    url, size = place["upload_url"], len(CODE)
    first = await sender.put(url, content=CODE[:1000], headers={"Content-Range": f"bytes 0-999/{size}"})
    assert (first.json()["data"]["received"], first.json()["data"]["complete"]) == (1000, False)
    refused = await client.post(BUILDERS, json=from_upload(place))
    assert (refused.status_code, list(refused.json()["errors"])) == (422, ["source.upload_id"])
    gap = await sender.put(url, content=CODE[2000:], headers={"Content-Range": f"bytes 2000-{size - 1}/{size}"})
    assert (gap.status_code, gap.json()["data"]) == (409, {"received": 1000})
    assert (await sender.get(url)).json()["data"]["received"] == 1000
    rest = await sender.put(url, content=CODE[1000:], headers={"Content-Range": f"bytes 1000-{size - 1}/{size}"})
    assert rest.json()["data"]["complete"]
    assert (await client.post(BUILDERS, json=from_upload(place))).status_code == 201


async def test_another_check_sum_is_refused_and_nothing_kept(
    client: httpx.AsyncClient, sender: httpx.AsyncClient, place: dict[str, Any]
) -> None:
    wrong = await sender.put(place["upload_url"], content=CODE, headers={"X-Content-Sha256": "0" * 64})
    assert (wrong.status_code, list(wrong.json()["errors"])) == (422, ["sha256"])
    assert (await sender.get(place["upload_url"])).json()["data"]["received"] == 0
    announced = (await client.post(UPLOADS, json={"sha256": "0" * 64})).json()["data"]
    assert (await sender.put(announced["upload_url"], content=CODE)).status_code == 422
    right = (await client.post(UPLOADS, json={"sha256": SHA256, "size": len(CODE)})).json()["data"]
    assert (await sender.put(right["upload_url"], content=CODE)).json()["data"]["complete"]


async def test_an_upload_is_not_deleted_while_it_is_sent(
    client: httpx.AsyncClient, sender: httpx.AsyncClient, place: dict[str, Any]
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield CODE[:1000]
        begun.set()
        await go_on.wait()
        yield CODE[1000:]

    sending = asyncio.create_task(sender.put(place["upload_url"], content=slow(), headers={"X-Content-Sha256": SHA256}))
    await begun.wait()
    refused = await client.delete(f"{UPLOADS}/{place['upload_id']}")
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    go_on.set()
    assert (await sending).json()["data"]["complete"]
    assert (await client.delete(f"{UPLOADS}/{place['upload_id']}")).status_code == 204


async def test_sizes_are_held_to(client: httpx.AsyncClient, sender: httpx.AsyncClient, service: Service) -> None:
    announced = (await client.post(UPLOADS, json={"size": 100})).json()["data"]
    assert (await sender.put(announced["upload_url"], content=CODE)).status_code == 400
    most = service.application.upload_rules.max_bytes
    assert (await client.post(UPLOADS, json={"size": most + 1})).status_code == 413


@pytest.mark.parametrize("text", ["bytes 0-9", "bytes 5-4/10", "bytes 0-99/10", "0-9/10", "bytes 0-8/10", "bytes */10"])
async def test_a_range_that_does_not_fit_is_refused(
    sender: httpx.AsyncClient, place: dict[str, Any], text: str
) -> None:
    response = await sender.put(place["upload_url"], content=b"x" * 10, headers={"Content-Range": text})
    assert (response.status_code, response.json()["code"]) == (400, "bad_request")


async def test_upload_url_requires_its_signature(sender: httpx.AsyncClient, place: dict[str, Any]) -> None:
    bare = place["upload_url"].partition("?")[0]
    for url in (bare, f"{bare}?signature=bdu_x", f"{bare}?signature=", f"{UPLOADS}/x?signature=y"):
        assert (await sender.put(url, content=CODE)).status_code == 404
        assert (await sender.get(url)).status_code == 404


async def test_uploads_are_their_tenants_alone(
    service: Service, client: httpx.AsyncClient, sender: httpx.AsyncClient, place: dict[str, Any]
) -> None:
    await sender.put(place["upload_url"], content=CODE)
    async with service.client(service.other) as other:
        stolen = await other.post(BUILDERS, json=from_upload(place))
        assert (stolen.status_code, list(stolen.json()["errors"])) == (422, ["source.upload_id"])
    assert (await client.delete(f"{UPLOADS}/{place['upload_id']}")).status_code == 204
    assert (await sender.get(place["upload_url"])).status_code == 404


async def test_uploads_of_a_tenant_are_limited(client: httpx.AsyncClient, service: Service) -> None:
    for _ in range(service.application.upload_rules.max_count):
        assert (await client.post(UPLOADS, json={"size": 10})).status_code == 201
    refused = await client.post(UPLOADS, json={"size": 10})
    assert (refused.status_code, refused.json()["code"]) == (429, "quota_exceeded")


async def test_nothing_need_be_said_beforehand(client: httpx.AsyncClient) -> None:
    assert (await client.post("/api/v1/uploads")).status_code == 201


async def test_promised_bytes_are_counted(client: httpx.AsyncClient) -> None:
    answers = [(await client.post(UPLOADS, json={})).status_code for _ in range(6)]
    assert answers == [201] * 5 + [429]


async def test_the_code_comes_in_one_way(client: httpx.AsyncClient, place: dict[str, Any]) -> None:
    for change, field in (
        ({"files": {"a": "b"}}, "source"),
        ({"source": None}, "files"),
        ({"source": {}}, "source.upload_id"),
        ({"source": {"upload_id": "x"}}, "source.upload_id"),
        ({"source": "x"}, "source"),
    ):
        response = await client.post(BUILDERS, json=from_upload(place, **change))
        assert (response.status_code, list(response.json()["errors"])) == (422, [field])
    nothing = await client.post(BUILDERS, json={"name": "a", "entrypoint": "b"})
    assert list(nothing.json()["errors"]) == ["files"]


async def test_file_that_is_no_archive_is_rejected(
    client: httpx.AsyncClient, sender: httpx.AsyncClient, place: dict[str, Any]
) -> None:
    await sender.put(place["upload_url"], content=b"hello" * 1000)
    response = await client.post(BUILDERS, json=from_upload(place))
    assert (response.status_code, list(response.json()["errors"])) == (422, ["source"])
    assert (await client.get(BUILDERS)).json()["data"] == []
