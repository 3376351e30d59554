"""Alive, ready, and what there is to count."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text
from tests.service import METRICS_TOKEN, MINIMAL, Service

from builderd.core.ids import DiskId
from builderd.core.members import MemberReport
from builderd.core.resources import Capacity
from builderd.credentials.vault import KeyFile
from builderd.previews.model import PreviewActivity
from builderd.server.app import create_app, metrics_app
from builderd.server.meter import Meter
from builderd.server.operations import Operations


@pytest.fixture
def anybody(service: Service) -> httpx.AsyncClient:
    """Return a client without a token."""
    return service.client(None)


@pytest.mark.parametrize("path", ["/healthz", "/api/v1/healthz"])
async def test_healthz_needs_no_token(anybody: httpx.AsyncClient, path: str) -> None:
    response = await anybody.get(path)
    assert (response.status_code, response.json()["success"]) == (200, True)


async def test_readyz_requires_all_parts(anybody: httpx.AsyncClient) -> None:
    response = await anybody.get("/readyz")
    assert response.status_code == 200
    data = response.json()["data"]
    assert all(data[part]["ready"] for part in ("database", "engine", "previews", "public_url"))
    assert (data["role"], data["worker"]) == ("working", None)


async def test_a_clock_that_was_set_is_reported_and_holds_up_nothing(
    anybody: httpx.AsyncClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.application.clock, "fault", lambda: "the machine's clock was set back.")
    body = (await anybody.get("/readyz")).json()
    assert body["message"] == "builderd is ready. clock: the machine's clock was set back."
    assert body["data"]["clock"] == {"ready": False, "message": "the machine's clock was set back."}


async def test_until_then_it_says_what_is_still_being_made(anybody: httpx.AsyncClient, service: Service) -> None:
    service.engine.ready = False
    service.previews.break_down()
    response = await anybody.get("/readyz")
    body = response.json()
    assert (response.status_code, body["code"], response.headers["retry-after"]) == (503, "engine_unavailable", "1")
    assert "engine: " in body["message"]
    assert "previews: the proxy does not answer" in body["message"]
    assert (body["data"]["engine"]["ready"], body["data"]["database"]["ready"]) == (False, True)


async def test_a_vault_without_its_key_is_not_ready(
    anybody: httpx.AsyncClient, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "vault.key"
    monkeypatch.setattr(service.application.vault, "_keys", KeyFile(key))
    assert (await anybody.get("/readyz")).json()["data"]["vault"]["ready"]
    key.write_bytes(b"")
    key.chmod(0o600)
    response = await anybody.get("/readyz")
    assert (response.status_code, response.json()["data"]["vault"]["ready"]) == (503, False)
    assert "vault: The vault's key cannot be read" in response.json()["message"]


async def test_a_database_with_another_schema_is_not_ready_and_says_what_is_missing(
    anybody: httpx.AsyncClient, service: Service
) -> None:
    def damage() -> None:
        with service.store._database.writing.begin() as connection:
            connection.execute(text("ALTER TABLE builders DROP COLUMN member"))
            connection.execute(text("UPDATE alembic_version SET version_num = '0016'"))

    await asyncio.get_running_loop().run_in_executor(service.store._writers, damage)
    response = await anybody.get("/readyz")
    body = response.json()
    assert (response.status_code, body["data"]["database"]["ready"]) == (503, False)
    assert "revision 0016" in body["message"]
    assert "builders.member is missing" in body["message"]


# Metrics


async def test_metrics_want_their_own_token(service: Service, anybody: httpx.AsyncClient) -> None:
    assert (await anybody.get("/metrics")).status_code == 401
    assert (await service.client(service.write).get("/metrics")).status_code == 401
    umlaut = [(b"Authorization", "Bearer ü".encode("latin-1"))]
    assert (await anybody.get("/metrics", headers=umlaut)).status_code == 401
    response = await service.client(METRICS_TOKEN).get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")


async def test_without_a_metrics_token_there_are_none_here(service: Service) -> None:
    service.app = create_app(Operations(service.application))
    response = await service.client(service.write).get("/metrics")
    assert (response.status_code, response.json()["code"]) == (404, "not_found")


def samples(text: str) -> dict[str, float]:
    """``{'name{label="value"}': value}``"""
    return {
        f"{sample.name}{{{','.join(f'{k}={v}' for k, v in sorted(sample.labels.items()))}}}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_requests_builders_previews_and_the_engine_are_counted(
    client: httpx.AsyncClient, service: Service
) -> None:
    created = await client.post("/api/v1/builders", json=MINIMAL)
    host = created.json()["data"]["preview_url"].split("/")[2].split(":")[0]
    service.previews.visit(host, PreviewActivity(3, 10, 20, 1, 2, idle_seconds=0))
    for _ in range(2):
        await client.get(f"/api/v1/builders/{created.json()['data']['uuid']}")
    await client.request("MADE-UP", "/nowhere")
    found = samples((await service.client(METRICS_TOKEN).get("/metrics")).text)
    assert found["builderd_builders{status=running}"] == 1
    assert found["builderd_builders{status=stopped}"] == 0
    assert found["builderd_engine_ready{}"] == 1
    space = await service.bundles.space()
    assert found["builderd_code_stored_bytes{}"] == space.used > 0
    assert found["builderd_code_free_bytes{}"] == space.free
    route = "/api/v1/builders/{uuid}"
    assert found[f"builderd_http_requests_total{{method=GET,route={route},status=200}}"] == 2
    assert found[f"builderd_http_request_duration_seconds_count{{method=GET,route={route}}}"] == 2
    assert found["builderd_http_requests_total{method=other,route=,status=404}"] == 1
    assert found[f"builderd_preview_requests_total{{host={host}}}"] == 3
    assert found[f"builderd_preview_failures_total{{host={host}}}"] == 2
    assert found[f"builderd_preview_connections{{host={host}}}"] == 1


async def test_each_member_of_a_cluster_has_its_own_series(service: Service) -> None:
    before = samples((await service.client(METRICS_TOKEN).get("/metrics")).text)
    assert not [name for name in before if name.startswith("builderd_member")]
    engine, now = service.engine, service.application.clock.now()
    engine.cluster = [
        MemberReport("node1", "10.0.0.1", capacity=Capacity(4, 8, 100)),
        MemberReport("node2", "10.0.0.2", now, evacuating=True),
    ]
    engine.member = "node1"
    await engine.create_disk(DiskId("one"), 1)
    found = samples((await service.client(METRICS_TOKEN).get("/metrics")).text)
    assert {name: value for name, value in found.items() if name.startswith("builderd_member")} == {
        "builderd_member_online{member=node1}": 1,
        "builderd_member_online{member=node2}": 0,
        "builderd_member_evacuating{member=node1}": 0,
        "builderd_member_evacuating{member=node2}": 1,
        "builderd_member_disks{member=node1}": 1,
        "builderd_member_disks{member=node2}": 0,
        "builderd_member_capacity{member=node1,resource=cpu}": 4,
        "builderd_member_capacity{member=node1,resource=memory}": 8,
        "builderd_member_capacity{member=node1,resource=disk}": 100,
    }


async def test_metrics_are_there_while_the_proxy_is_not(service: Service) -> None:
    assert samples((await service.client(METRICS_TOKEN).get("/metrics")).text)["builderd_previews_ready{}"] == 1
    service.previews.break_down()
    assert samples((await service.client(METRICS_TOKEN).get("/metrics")).text)["builderd_previews_ready{}"] == 0


async def test_a_listener_of_their_own_needs_no_token_and_shows_nothing_else(service: Service) -> None:
    meter = Meter()
    service.app = create_app(Operations(service.application), meter=meter)
    await service.client(None).get("/healthz")
    service.app = metrics_app(service.application, meter)
    text = (await service.client(None).get("/metrics")).text
    assert re.search(r'builderd_http_requests_total\{.*route="/healthz"', text)
    assert (await service.client(service.write).get("/api/v1/builders")).status_code == 404
