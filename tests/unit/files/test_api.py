"""The files of a builder, over HTTP."""

from __future__ import annotations

import asyncio
import io
import tarfile
from collections.abc import AsyncIterator, Awaitable, MutableMapping
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import zstandard
from tests.service import MINIMAL, Service

from builderd.core.ids import BuilderId
from builderd.database.unit_of_work import UnitOfWork
from builderd.files import api as door
from builderd.server import streams

BUILDERS = "/api/v1/builders"


@pytest.fixture
async def path(client: httpx.AsyncClient) -> str:
    uuid = (await client.post(BUILDERS, json=MINIMAL)).json()["data"]["uuid"]
    return f"{BUILDERS}/{uuid}/files"


async def test_a_folder_is_listed(client: httpx.AsyncClient, path: str) -> None:
    await client.put(f"{path}/data/one.txt", content=b"one")
    response = await client.get(path)
    assert response.status_code == 200
    assert [(entry["name"], entry["type"]) for entry in response.json()["data"]] == [
        ("data", "folder"),
        ("main.py", "file"),
    ]
    assert response.json()["meta"] == {"page": 1, "per_page": 100, "total": 2}
    (one,) = (await client.get(path, params={"path": "/data/"})).json()["data"]
    assert (one["size"], one["mode"], one["target"]) == (3, "0644", None)
    page = await client.get(path, params={"per_page": 1, "page": 2})
    assert [entry["name"] for entry in page.json()["data"]] == ["main.py"]


async def test_a_file_is_read_and_never_shown_by_a_browser(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(f"{path}/main.py")
    assert (response.status_code, response.content) == (200, b"print('hello')")
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.headers["content-disposition"] == "attachment; filename*=UTF-8''main.py"
    assert response.headers["x-content-type-options"] == "nosniff"


async def test_a_part_of_a_file_is_read(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(f"{path}/main.py", headers={"Range": "bytes=0-4"})
    assert (response.status_code, response.content) == (206, b"print")
    assert response.headers["content-range"] == "bytes 0-4/14"
    beyond = await client.get(f"{path}/main.py", headers={"Range": "bytes=14-"})
    assert (beyond.status_code, beyond.json()["code"]) == (416, "range_not_satisfiable")
    assert beyond.headers["content-range"] == "bytes */14"


async def test_a_file_that_is_known_is_not_sent_again(client: httpx.AsyncClient, path: str) -> None:
    tag = (await client.get(f"{path}/main.py")).headers["etag"]
    response = await client.get(f"{path}/main.py", headers={"If-None-Match": tag})
    assert (response.status_code, response.content, response.headers["etag"]) == (304, b"", tag)


async def test_file_is_written_while_received(client: httpx.AsyncClient, path: str) -> None:
    content = bytes(range(256)) * 1000
    created = await client.put(f"{path}/a/b.bin", content=content, params={"executable": "true"})
    assert (created.status_code, created.json()["data"]["mode"]) == (201, "0755")
    assert (await client.get(f"{path}/a/b.bin")).content == content
    replaced = await client.put(f"{path}/a/b.bin", content=b"")
    assert (replaced.status_code, replaced.json()["data"]["size"]) == (200, 0)
    assert replaced.headers["etag"] != created.headers["etag"]


async def test_a_file_is_not_replaced_by_a_part_of_it(client: httpx.AsyncClient, path: str) -> None:
    refused = await client.put(f"{path}/main.py", content=b"print", headers={"Content-Range": "bytes 0-4/14"})
    assert (refused.status_code, refused.json()["code"]) == (400, "bad_request")
    assert "in one request" in refused.json()["message"]
    assert (await client.get(f"{path}/main.py")).content == b"print('hello')"


async def test_if_match_prevents_lost_updates(client: httpx.AsyncClient, path: str) -> None:
    tag = (await client.get(f"{path}/main.py")).headers["etag"]
    assert (await client.put(f"{path}/main.py", content=b"mine", headers={"If-Match": tag})).status_code == 200
    late = await client.put(f"{path}/main.py", content=b"theirs", headers={"If-Match": tag})
    assert (late.status_code, late.json()["code"]) == (412, "precondition_failed")
    taken = await client.put(f"{path}/main.py", content=b"new", headers={"If-None-Match": "*"})
    assert taken.status_code == 412
    gone = await client.delete(f"{path}/main.py", headers={"If-Match": tag})
    assert gone.status_code == 412
    assert (await client.get(f"{path}/main.py")).content == b"mine"


async def test_files_and_folders_are_deleted(client: httpx.AsyncClient, path: str) -> None:
    await client.put(f"{path}/a/b", content=b"x")
    assert (await client.delete(f"{path}/a")).status_code == 422
    response = await client.delete(f"{path}/a", params={"recursive": "true"})
    assert (response.status_code, response.content) == (204, b"")
    assert (await client.delete(f"{path}/a/b")).status_code == 404


async def test_files_of_a_stopped_builder_are_reached(client: httpx.AsyncClient, path: str) -> None:
    await client.post(path.replace("files", "stop"))
    assert (await client.put(f"{path}/main.py", content=b"x")).status_code == 200
    assert (await client.get(f"{path}/main.py")).content == b"x"


async def test_all_files_come_in_one_archive(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path.replace("files", "archive"))
    assert response.headers["content-type"] == "application/zstd"
    packed = zstandard.ZstdDecompressor().decompressobj().decompress(response.content)
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        assert tar.getnames() == ["./main.py"]


async def test_more_archives_or_files_at_a_time_than_the_limit_are_429(
    client: httpx.AsyncClient, service: Service, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations = service.app.state.operations
    for limit, url in (
        (operations.archives, path.replace("files", "archive")),
        (operations.file_reads, f"{path}/main.py"),
    ):
        assert (await client.get(url)).status_code == 200
        monkeypatch.setattr(limit, "maximum", 0)
        refused = await client.get(url)
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert "of yours are being sent already" in refused.json()["message"]
        assert limit.total() == 0


@pytest.mark.parametrize(
    "hostile",
    ["%2e%2e/main.py", "a%2f..%2f..%2fetc", "%2fetc/passwd", "a//b", "a/%2e/b", "a%00b", "x" * 300, "a/"],
)
async def test_a_path_that_leads_elsewhere_is_refused(client: httpx.AsyncClient, path: str, hostile: str) -> None:
    for method in ("GET", "PUT", "DELETE"):
        request = client.build_request(method, path)
        request.url = request.url.copy_with(raw_path=f"{path}/{hostile}".encode())
        response = await client.send(request)
        assert (response.status_code, list(response.json()["errors"])) == (422, ["path"])
    if "%" not in hostile:
        listed = await client.get(path, params={"path": f"{hostile}/."})
        assert listed.status_code == 422


async def test_file_access_records_a_use(service: Service, client: httpx.AsyncClient, path: str) -> None:
    uuid = path.split("/")[-2]
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)

    def forget(uow: UnitOfWork) -> None:
        builder = uow.builders.get(BuilderId(uuid), lock=True)
        assert builder
        uow.builders.save(replace(builder, last_active_at=long_ago))

    async def is_used_by(call: Awaitable[httpx.Response]) -> bool:
        await service.store.write(forget)
        assert (await call).is_success
        builder = await service.store.read(lambda uow: uow.builders.get(BuilderId(uuid)))
        assert builder
        return builder.last_active_at != long_ago

    assert await is_used_by(client.put(f"{path}/x", content=b"x"))
    assert await is_used_by(client.get(path))
    assert await is_used_by(client.get(f"{path}/x"))
    assert await is_used_by(client.delete(f"{path}/x"))
    assert await is_used_by(client.get(path.replace("files", "archive")))
    assert not await is_used_by(client.get(path.replace("files", "logs")))


@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])
async def test_stalled_download_is_closed(monkeypatch: pytest.MonkeyPatch, spec_version: str) -> None:
    monkeypatch.setattr(streams, "STALL_SECONDS", 0.05)
    let_go, never = asyncio.Event(), asyncio.Event()

    async def content() -> AsyncIterator[bytes]:
        while True:
            yield b"x"

    async def receive() -> MutableMapping[str, Any]:
        await never.wait()
        raise AssertionError("nothing ever comes")

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.body":
            await never.wait()

    stack = AsyncExitStack()
    stack.callback(let_go.set)
    download = streams.ResourceStream(stack, content(), 200, {}, door.BINARY)
    scope = {"type": "http", "asgi": {"spec_version": spec_version}}
    await asyncio.wait_for(download(scope, receive, send), 60)
    assert let_go.is_set()
