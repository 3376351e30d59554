"""The API as programs use it: retries over a crash, polling, following a log, and scraping the metrics."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from httpx_sse import connect_sse
from prometheus_client.parser import text_string_to_metric_families
from tests.acceptance.conftest import METRICS_TOKEN
from tests.acceptance.live_service import PATIENCE, LiveService, body

pytestmark = [pytest.mark.root, pytest.mark.engines]


@pytest.mark.parametrize("moment", ["StartSandbox.done", pytest.param("CheckApp.done", marks=pytest.mark.slow)])
def test_retry_after_a_crash_returns_the_first_calls_builder(service: LiveService, moment: str) -> None:
    request: dict[str, Any] = {"json": body("retried"), "headers": {"Idempotency-Key": f"the only one, {moment}"}}
    service.terminate()
    service.start(moment)
    with pytest.raises(httpx.TransportError):
        service.call("POST", "/builders", **request)
    service.wait_dead()
    service.start()

    (created,) = service.call("GET", "/builders?name=retried").json()["data"]
    retried = service.call("POST", "/builders", **request)
    assert (retried.status_code, retried.json()["data"]["uuid"]) == (201, created["uuid"])
    again = service.call("POST", "/builders", **request)
    assert (again.status_code, again.json()) == (201, retried.json())
    assert again.headers["idempotency-replayed"] == "true"
    assert service.call("GET", "/builders?name=retried").json()["meta"]["total"] == 1
    other = service.call("POST", "/builders", **{**request, "json": body("retried", port=9000)})
    assert (other.status_code, other.json()["code"]) == (409, "conflict")
    service.call("DELETE", f"/builders/{created['uuid']}")


def test_followed_log_sends_each_line_as_it_is_written(service: LiveService) -> None:
    data = service.create("followed", env={"GREETING": "one"})
    with httpx.Client(timeout=PATIENCE, headers={"Authorization": f"Bearer {service.token}"}) as client:
        url = f"{service.url}/api/v1/builders/{data['uuid']}/logs?follow=true"
        with connect_sse(client, "GET", url) as source:
            events = source.iter_sse()
            for visit in ("first", "second"):
                assert service.visit(data, visit).status_code == 200
                assert next(line for line in map(log_line, events) if f"GET /{visit} " in line["text"])
            # The stream ends with the builder.
            service.call("DELETE", f"/builders/{data['uuid']}")
            assert {event.event for event in events} <= {"line"}


def log_line(event: Any) -> dict[str, Any]:
    """A line as the log's own format has it."""
    assert event.event == "line"
    line: dict[str, Any] = json.loads(event.data)
    assert set(line) == {"time", "stream", "version", "process", "text"}
    return line


def test_metrics_count_builders_requests_and_visits(service: LiveService) -> None:
    assert httpx.get(f"{service.url}/metrics").status_code == 401
    before = scrape(service)
    data = service.create("counted")
    host = data["preview_url"].split("/")[2].partition(":")[0]
    for _ in range(3):
        service.visit(data)
    after = scrape(service)
    assert gained("builderd_builders", status="running", before=before, after=after) == 1
    created = {"method": "POST", "route": "/api/v1/builders", "status": "201"}
    assert gained("builderd_http_requests_total", **created, before=before, after=after) == 1
    assert gained("builderd_preview_requests_total", host=host, before=before, after=after) == 3
    service.call("DELETE", f"/builders/{data['uuid']}")


Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(service: LiveService) -> Samples:
    """Everything that the service counts, as Prometheus reads it."""
    response = httpx.get(f"{service.url}/metrics", headers={"Authorization": f"Bearer {METRICS_TOKEN}"})
    assert response.status_code == 200, response.text
    families = text_string_to_metric_families(response.text)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def gained(name: str, *, before: Samples, after: Samples, **labels: str) -> float:
    key = (name, frozenset(labels.items()))
    return after.get(key, 0) - before.get(key, 0)
