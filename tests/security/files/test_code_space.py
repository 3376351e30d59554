"""One tenant stores as much code as it can: others still deploy, and what the database may take is never exceeded."""

from __future__ import annotations

import asyncio
import os
from base64 import b64encode
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from tests.service import MINIMAL, Service, running_service

from builderd.code.bundles.local import LocalBundles
from builderd.code.bundles.shared import SharedBundles
from builderd.code.model import BundleFile, make_bundle
from builderd.code.space import SHARE, CodeSpace, SentCode
from builderd.core.errors import NoCapacity, QuotaExceeded
from builderd.core.ids import TenantId, new_id

BUILDERS = "/api/v1/builders"
MB = 1_000_000
#: What all code may take, and what one app has.
MOST, SIZE = 2 * MB, 200_000


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with running_service() as service:
        service.bundles.most_bytes = MOST
        yield service


@pytest.fixture
def greedy(service: Service) -> httpx.AsyncClient:
    return service.client(service.write)


@pytest.fixture
def other(service: Service) -> httpx.AsyncClient:
    return service.client(service.other)


def app(name: str, size: int = SIZE) -> dict[str, Any]:
    """A request for an app with new random code."""
    noise = b64encode(os.urandom(size * 3 // 4)).decode()
    return {**MINIMAL, "name": name, "files": {**MINIMAL["files"], "noise.txt": noise}}


async def used(service: Service) -> int:
    return (await service.bundles.space()).used


async def fill(client: httpx.AsyncClient, name: str) -> list[str]:
    """Create apps until one is refused; return the uuids of the others."""
    made: list[str] = []
    while True:
        answer = await client.post(BUILDERS, json=app(f"{name}-{len(made)}"))
        if answer.status_code != 201:
            assert (answer.status_code, answer.json()["code"]) == (429, "quota_exceeded"), answer.text
            assert "Retry-After" not in answer.headers, "waiting frees nothing"
            return made
        made.append(answer.json()["data"]["uuid"])


async def test_greedy_tenant_is_stopped_at_its_share_and_others_still_deploy(
    service: Service, greedy: httpx.AsyncClient, other: httpx.AsyncClient
) -> None:
    made = await fill(greedy, "greedy")
    assert MOST * SHARE - 2 * SIZE <= await used(service) <= MOST * SHARE
    assert (await other.post(BUILDERS, json=app("neighbour", 2 * SIZE))).status_code == 201
    # Versions count as builders do.
    answer = await greedy.put(f"{BUILDERS}/{made[0]}", json={**app("greedy-0")})
    assert (answer.status_code, answer.json()["code"]) == (429, "quota_exceeded")
    assert "stored code" in answer.json()["message"]
    for uuid in made[:2]:
        assert (await greedy.delete(f"{BUILDERS}/{uuid}")).status_code == 200
    assert (await greedy.post(BUILDERS, json=app("again"))).status_code == 201


async def test_crowd_of_calls_at_once_gets_no_more(
    service: Service, greedy: httpx.AsyncClient, other: httpx.AsyncClient
) -> None:
    headers = {"Prefer": "respond-async"}
    calls = (greedy.post(BUILDERS, json=app(f"at-once-{number}"), headers=headers) for number in range(20))
    answers = await asyncio.gather(*calls)
    assert {answer.status_code for answer in answers} == {202, 429}
    assert await used(service) <= MOST * SHARE
    assert (await other.post(BUILDERS, json=app("neighbour"))).status_code == 201


async def test_two_greedy_tenants_never_exceed_the_whole(
    service: Service, greedy: httpx.AsyncClient, other: httpx.AsyncClient
) -> None:
    await fill(greedy, "first")
    await fill(other, "second")
    assert await used(service) <= MOST * (1 - (1 - SHARE) ** 2)


async def test_code_that_is_stored_already_is_taken_again(service: Service, greedy: httpx.AsyncClient) -> None:
    first = app("first")
    uuid = (await greedy.post(BUILDERS, json=first)).json()["data"]["uuid"]
    await fill(greedy, "rest")
    answer = await greedy.put(f"{BUILDERS}/{uuid}", json=first)
    assert answer.status_code == 200, answer.text


async def test_code_of_another_tenant_counts_for_each_that_has_it(
    service: Service, greedy: httpx.AsyncClient, other: httpx.AsyncClient
) -> None:
    shared = app("shared", 5 * SIZE - 100_000)
    assert (await other.post(BUILDERS, json=shared)).status_code == 201
    made = await fill(greedy, "greedy")
    assert made
    answer = await greedy.post(BUILDERS, json={**shared, "name": "copied"})
    assert (answer.status_code, answer.json()["code"]) == (429, "quota_exceeded")


async def test_code_of_deleted_builders_with_kept_backups_counts_on(
    service: Service, greedy: httpx.AsyncClient
) -> None:
    made = await fill(greedy, "greedy")
    for uuid in made[:2]:
        assert (await greedy.post(f"{BUILDERS}/{uuid}/backups")).status_code == 201
        assert (await greedy.delete(f"{BUILDERS}/{uuid}")).status_code == 200
    before = await used(service)
    await fill(greedy, "more")
    assert await used(service) <= max(before + SIZE, MOST * SHARE)


async def test_bundles_in_a_database_are_within_its_limit(tmp_path: Any, service: Service) -> None:
    """The adapter of clusters, on a real store."""
    shared = SharedBundles(service.store, LocalBundles(tmp_path / "bundles"), MOST)
    space, tenant = CodeSpace(), TenantId(new_id())
    kept = 0

    async def keep_on() -> None:
        nonlocal kept
        while kept < 100:
            bundle = make_bundle([BundleFile("noise", os.urandom(SIZE))])
            async with space.reserved(shared, service.store, SentCode(tenant, bundle), 10):
                await shared.put(bundle)
            kept += 1

    with pytest.raises(QuotaExceeded, match=r"limits\.code_share"):
        await keep_on()
    assert 0 < (await shared.space()).used <= MOST
    sizes = await service.store.read(lambda uow: uow.stored_bundles.sizes())
    assert sum(sizes.values()) == (await shared.space()).used
    assert len(sizes) == kept
    (first, *_) = sizes
    await shared.delete(first)
    assert (await shared.space()).used == sum(sizes.values()) - sizes[first]


async def test_code_is_refused_below_the_floor_of_the_data_directory(tmp_path: Any) -> None:
    folder = tmp_path / "bundles"
    bundle = make_bundle([BundleFile("main.py", b"print()")])
    await LocalBundles(folder).put(bundle)
    full = LocalBundles(folder, 1 << 60)
    await full.put(bundle)
    with pytest.raises(NoCapacity, match="of code on the machine"):
        await full.put(make_bundle([BundleFile("main.py", b"print(1)")]))
    assert await full.hashes() == {bundle.hash}
    assert await full.get(bundle.hash) == bundle
