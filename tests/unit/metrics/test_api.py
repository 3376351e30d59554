"""Metrics over HTTP, and to Prometheus."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from tests.service import METRICS_TOKEN, MINIMAL, Service

from builderd.metrics.job import Sampling
from builderd.metrics.model import Usage, UsageBucket, start_of
from builderd.previews.model import PreviewActivity

BUILDERS = "/api/v1/builders"


@pytest.fixture
async def uuid(client: httpx.AsyncClient) -> str:
    return str((await client.post(BUILDERS, json=MINIMAL)).json()["data"]["uuid"])


#: A response with a status of 5xx, within 10 ms.
FAILED = (0,) * 23 + (1,) + (0,) * 9


async def read(client: httpx.AsyncClient, uuid: str, **query: Any) -> dict[str, Any]:
    response = await client.get(f"{BUILDERS}/{uuid}/metrics", params=query)
    assert response.status_code == 200, response.text
    data: dict[str, Any] = response.json()["data"]
    return data


async def test_metrics_have_current_and_daily_usage(client: httpx.AsyncClient, service: Service, uuid: str) -> None:
    application = service.application
    (builder,) = await application.store.read(lambda uow: uow.builders.ids())
    usage = Usage(300, 75, 300e6, 2_000_000, 4_000, 10, 20, 30, 20, 5, 4, 1, within_10_ms=10, class_times=FAILED)
    start = start_of(application.clock.now())
    await application.store.write(lambda uow: uow.metrics.add([UsageBucket(builder, start, usage)]))
    await Sampling(application).sample()
    data = await read(client, uuid)
    now, last = data["now"], data["steps"][-1]
    assert (now["cpu_limit"], now["memory_limit_bytes"], now["disk_limit_bytes"]) == (1, 1 << 30, 3 << 30)
    assert (now["memory_bytes"], now["processes"]) == (20_000_000, 2)
    assert (data["step_seconds"], len(data["steps"])) == (300, 288)
    assert (last["cpu"], last["memory_bytes"], last["requests"], last["requests_per_second"]) == (0.25, 10**6, 30, 0.1)
    assert last["answers"] == {"2xx": 20, "3xx": 5, "4xx": 4, "5xx": 1}
    assert last["response_seconds"] == {"p50": 0.0075, "p95": 0.0097, "p99": 0.0099}
    by_class = last["response_seconds_by_class"]
    assert by_class["2xx"] == {"p50": 0.0075, "p95": 0.0097, "p99": 0.0099}
    assert by_class["5xx"] == by_class["2xx"]
    assert by_class["3xx"] is by_class["4xx"] is None
    assert data["steps"][0]["response_seconds"] is None
    assert data["steps"][0]["response_seconds_by_class"] is None
    assert data["steps"][0]["cpu"] is None


async def test_steps_may_be_longer_and_fewer(client: httpx.AsyncClient, uuid: str) -> None:
    data = await read(client, uuid, hours=6, step="1h")
    assert (data["step_seconds"], len(data["steps"])) == (3_600, 6)


async def test_stopped_builder_has_no_current_usage(client: httpx.AsyncClient, service: Service, uuid: str) -> None:
    await client.post(f"{BUILDERS}/{uuid}/stop")
    await Sampling(service.application).sample()
    assert (await read(client, uuid))["now"] is None


async def test_prometheus_has_the_same_by_builder(
    client: httpx.AsyncClient, service: Service, uuid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (host,) = await service.previews.routes()
    service.previews.visit(
        host, PreviewActivity(3, 0, 0, 0, 0, 0.0, answers_2xx=2, answers_5xx=1, within_10_ms=3, class_times=FAILED)
    )
    await Sampling(service.application).sample()
    text = (await service.client(METRICS_TOKEN).get("/metrics")).text
    label = f'builder="{uuid}",name="my-api",tenant="acme"'
    assert f"builderd_builder_memory_bytes{{{label}}} 2e+07" in text
    assert f"builderd_builder_received_bytes_total{{{label}}} 1000.0" in text
    assert f'builderd_preview_answers_total{{class="5xx",host="{host}"}} 1.0' in text
    assert f'builderd_preview_response_seconds_bucket{{class="2xx",host="{host}",le="0.01"}} 2.0' in text
    assert f'builderd_preview_response_seconds_bucket{{class="5xx",host="{host}",le="+Inf"}} 1.0' in text
    # No series for a class without responses.
    assert 'builderd_preview_response_seconds_bucket{class="4xx"' not in text


async def test_prometheus_series_are_limited(service: Service, uuid: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from builderd.server import meter

    monkeypatch.setattr(meter, "MAX_SERIES", 2)
    for number in range(5):
        service.previews.visit(f"h{number}.localhost", PreviewActivity(number, 0, 0, 0, 0, 0.0))
    text = (await service.client(METRICS_TOKEN).get("/metrics")).text
    hosts = {line.split('"')[1] for line in text.splitlines() if line.startswith("builderd_preview_requests_total")}
    assert hosts == {"h4.localhost", "h3.localhost"}
