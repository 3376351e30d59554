"""The OpenAPI document is exact: no call is answered with anything that it does not tell."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, settings
from schemathesis.openapi import from_dict
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance, unsupported_method
from tests.document import DOCUMENT
from tests.service import METRICS_TOKEN, MINIMAL, listening, running_service

from builderd.core.resources import Resources
from builderd.server.rates import Rates

#: Schema-valid requests can break rules that JSON Schema cannot tell, such as a path that is both file and folder;
#: and DELETE /builders/spending names a builder that is not there, 404, where that check wants 405.
LEFT_OUT = [positive_data_acceptance, unsupported_method]

SOAK = settings.get_current_profile_name() == "soak"
bounded = settings(max_examples=30 if SOAK else 2, suppress_health_check=list(HealthCheck))


@dataclass(frozen=True)
class Running:
    url: str
    token: str


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """A service in a thread of its own: the generated calls are not asynchronous."""
    started: list[Running] = []
    ready, over = threading.Event(), threading.Event()

    async def serve() -> None:
        async with running_service() as service, listening(service.app) as url:
            # Generated calls try many wrong tokens.
            service.app.state.rates = Rates(failures=0)
            started.append(Running(url, service.write))
            ready.set()
            await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(20)
    yield started[0]
    over.set()
    thread.join()


@pytest.fixture(scope="module")
def own(running: Running) -> str:
    """The uuid of a builder that is there."""
    created = httpx.post(
        f"{running.url}/api/v1/builders",
        json={**MINIMAL, "name": "own"},
        headers={"Authorization": f"Bearer {running.token}"},
        trust_env=False,
    )
    uuid: str = created.json()["data"]["uuid"]
    return uuid


described = from_dict(deepcopy(DOCUMENT))
# Its cases at every bound are made while the tests are collected, 13 s of CPU for each process that collects them:
# script/soak tries those, every run the examples and what is generated.
if not SOAK:
    described.config.phases.update(phases=["examples", "fuzzing"])


@described.parametrize()
@bounded
def test_generated_calls_are_answered_as_documented(case: Any, running: Running) -> None:
    if case.operation.path == "/api/v1/events" and case.query.get("follow"):
        return  # it goes on for ever
    token = METRICS_TOKEN if case.operation.path == "/metrics" else running.token
    call(case, running.url, token)


@described.include(path_regex=r"\{uuid\}").parametrize()
@bounded
def test_so_are_those_of_a_builder_that_is_there(case: Any, running: Running, own: str) -> None:
    if case.operation.method.upper() == "DELETE" or "uuid" not in case.path_parameters or case.query.get("follow"):
        return
    case.path_parameters["uuid"] = own
    # What was generated as an invalid uuid is a valid one now.
    call(case, running.url, running.token, negative_data_rejection)


def call(case: Any, url: str, token: str, *left_out: Any) -> None:
    headers = {"Authorization": f"Bearer {token}"}
    case.call_and_validate(url, headers=headers, excluded_checks=[*LEFT_OUT, *left_out], timeout=20)


async def test_the_document_is_served_as_it_was_tested(client: httpx.AsyncClient) -> None:
    assert (await client.get("/openapi.json")).json() == DOCUMENT


def test_operators_limits_are_in_the_document() -> None:
    properties = DOCUMENT["components"]["schemas"]["Resources"]["properties"]
    maximum = Resources(cpu=8, memory=16, disk=100)
    assert {name: field["maximum"] for name, field in properties.items()} == {
        "cpu": maximum.cpu,
        "memory": maximum.memory,
        "disk": maximum.disk,
    }


def test_a_builder_is_documented_with_all_its_keys_as_required() -> None:
    builder = DOCUMENT["components"]["schemas"]["Builder"]
    assert builder["required"] == list(builder["properties"])


def test_deploying_operations_are_documented_with_their_stream() -> None:
    for path, method in (("", "put"), ("", "patch"), ("/rollback", "post"), ("/auto-stop", "put")):
        answer = DOCUMENT["paths"][f"/api/v1/builders/{{uuid}}{path}"][method]["responses"]["200"]
        assert set(answer["content"]) == {"application/json", "text/event-stream"}


def test_nothing_of_the_frameworks_own_errors_is_left() -> None:
    assert "HTTPValidationError" not in str(DOCUMENT)


def test_each_operation_has_its_own_name_and_a_summary() -> None:
    operations = [operation for path in DOCUMENT["paths"].values() for operation in path.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(names) == len(set(names))
    assert all(operation["description"].startswith(operation["summary"]) for operation in operations)
    assert DOCUMENT["paths"]["/api/v1/builders"]["post"]["summary"] == (
        "Turn code into a running, isolated app with a live URL"
    )


def test_each_operation_is_in_a_group_that_is_described() -> None:
    groups = {tag["name"] for tag in DOCUMENT["tags"]}
    assert {name for path in DOCUMENT["paths"].values() for call in path.values() for name in call["tags"]} == groups


async def test_the_example_of_a_creation_works_as_it_stands(client: httpx.AsyncClient) -> None:
    body = DOCUMENT["paths"]["/api/v1/builders"]["post"]["requestBody"]["content"]["application/json"]
    assert (await client.post("/api/v1/builders", json=body["example"])).status_code == 201
