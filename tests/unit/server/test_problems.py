"""Every error is answered in the envelope."""

from __future__ import annotations

import errno
import subprocess
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from tests.service import MINIMAL, Service

from builderd.code.bundles.local import LocalBundles
from builderd.core import errors
from builderd.core.errors import BuilderdError
from builderd.database.unit_of_work import Store
from builderd.server.answers import STATUS, failure


def codes(error: type[BuilderdError]) -> set[str]:
    return {error.code}.union(*(codes(child) for child in error.__subclasses__()))


def test_every_coded_error_has_a_status() -> None:
    assert codes(BuilderdError) <= set(STATUS)


def test_an_error_says_when_to_come_back() -> None:
    answer = failure(errors.NoCapacity("Full.", retry_after=7))
    assert (answer.status, answer.headers) == (503, {"Retry-After": "7"})


@pytest.mark.parametrize(
    "path", ["/", "/nope", "/api/v1", "/api/v1/", "/api/v1/builders/", "//api/v1/builders", "/%00"]
)
async def test_an_unknown_call_is_404(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path)
    assert (response.status_code, response.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/api/v1/builders", "GET, HEAD, POST"),
        ("OPTIONS", "/api/v1/builders", "GET, HEAD, POST"),
        ("POST", "/api/v1/builders/x", "DELETE, GET, HEAD, PATCH, PUT"),
        ("POST", "/api/v1/builders/spending", "GET, HEAD"),
        ("GET", "/api/v1/builders/x/start", "POST"),
        ("POST", "/healthz", "GET, HEAD"),
        ("POST", "/api/v1/healthz", "GET, HEAD"),
        ("BREW", "/api/v1/builders", "GET, HEAD, POST"),
    ],
)
async def test_another_method_is_405_with_those_that_there_are(
    client: httpx.AsyncClient, method: str, path: str, allow: str
) -> None:
    response = await client.request(method, path)
    assert (response.status_code, response.json()["code"]) == (405, "method_not_allowed")
    assert response.headers["allow"] == allow


async def test_unexpected_error_is_500_without_details(
    client: httpx.AsyncClient, service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("a secret of the inside")

    monkeypatch.setattr(type(service.store), "read", broken)
    response = await client.get("/api/v1/builders")
    assert (response.status_code, response.json()["code"]) == (500, "internal_error")
    assert response.headers["x-request-id"] in response.json()["message"]
    assert "secret" not in response.text
    assert "a secret of the inside" in caplog.text


@pytest.mark.parametrize(
    ("error", "cure"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "free space"),
        (OSError(errno.EIO, "Input/output error"), "dmesg"),
        (OSError(errno.EMFILE, "Too many open files"), "LimitNOFILE"),
        (MemoryError(), "memory"),
    ],
)
async def test_a_fault_of_the_machine_is_503_with_its_cure(
    client: httpx.AsyncClient,
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    cure: str,
) -> None:
    async def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr(type(service.application.bundles), "put", broken)
    response = await client.post("/api/v1/builders", json=MINIMAL)
    assert (response.status_code, response.json()["code"]) == (503, "machine_fault")
    assert response.headers["Retry-After"] == "30"
    assert cure in response.json()["message"]
    assert response.headers["x-request-id"] in response.json()["message"]
    assert (await client.get("/api/v1/builders")).json()["data"] == []


class Unaware(LocalBundles):
    """Sees free space that another process takes before it is used."""

    def _free(self) -> int:
        return 10**9


@pytest.mark.root
@pytest.mark.parametrize(
    ("kind", "code", "reason"),
    [(LocalBundles, "no_capacity", "no room for"), (Unaware, "machine_fault", "ENOSPC")],
    ids=["full before", "full at the write"],
)
async def test_code_that_a_full_disk_has_no_room_for_is_503_until_there_is_room(
    service: Service, tmp_path: Path, kind: type[LocalBundles], code: str, reason: str
) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], check=True)
    try:
        service.application = replace(service.application, bundles=kind(tmp_path / "bundles"))
        service.app.state.application = service.application
        service.app.state.operations.application = service.application
        filler = tmp_path / "filler"
        filler.write_bytes(bytes(900_000))
        client = service.client(service.write)
        new = {**MINIMAL, "files": {**MINIMAL["files"], "data.txt": "x" * 500_000}}
        refused = await client.post("/api/v1/builders", json=new, headers={"Idempotency-Key": "k"})
        assert (refused.status_code, refused.json()["code"]) == (503, code)
        assert reason in refused.json()["message"], refused.text
        assert (await client.get("/api/v1/builders")).json()["data"] == []
        filler.unlink()
        headers = {"Idempotency-Key": "k", "Prefer": "respond-async"}
        assert (await client.post("/api/v1/builders", json=new, headers=headers)).status_code == 202
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)


async def test_a_database_that_does_not_answer_is_a_503_on_every_call(service: Service) -> None:
    service.application = replace(service.application, store=Store("postgresql://me@127.0.0.1:1/builderd"))
    client = service.client(service.write)
    service.app.state.application = service.application
    for method, path in (("GET", "/api/v1/builders"), ("GET", "/api/v1/events"), ("POST", "/api/v1/builders")):
        response = await client.request(method, path, json={})
        assert (response.status_code, response.json()["code"]) == (503, "store_unavailable")
        assert response.headers["Retry-After"]
        assert response.headers["x-request-id"] in response.json()["message"]
    await service.application.store.close()
