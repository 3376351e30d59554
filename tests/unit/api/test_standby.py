"""A service that stands by says so, and whether it reaches the one that works; it passes a wrong token nothing."""

from __future__ import annotations

import httpx
import pytest

from builderd.api.standby import Way, create_standby_app, create_standby_metrics

PART = {"ready": True, "message": "it answers"}
READY = {"database": PART, "engine": PART, "previews": PART, "public_url": PART, "role": "working", "later": 1}
FAULT = Way("one.example", "its members_port is not reached (Connection refused)")


def client(way: Way, token: str | None = None) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(create_standby_app(lambda: way, token))
    return httpx.AsyncClient(transport=transport, base_url="http://standby")


@pytest.mark.parametrize("prefix", ["", "/api/v1"])
async def test_standby_is_ready_with_the_service_that_works(prefix: str) -> None:
    async with client(Way("one.example", "", READY)) as calls:
        health = (await calls.get(f"{prefix}/healthz")).json()["data"]
        assert (health["role"], health["worker"], health["way"]["ready"]) == ("standby", "one.example", True)
        answer = await calls.get(f"{prefix}/readyz")
    assert answer.status_code == 200
    data = answer.json()["data"]
    assert (data["role"], data["worker"], data["engine"]) == ("standby", "one.example", PART)


async def test_standby_is_not_ready_while_the_service_that_works_is_not() -> None:
    waiting = {"ready": False, "message": "image: sending it to Incus"}
    async with client(Way("one.example", "", {**READY, "engine": waiting})) as calls:
        answer = await calls.get("/readyz")
    assert (answer.status_code, answer.json()["data"]["way"]["ready"]) == (503, True)
    assert "engine: image: sending it to Incus" in answer.json()["message"]


@pytest.mark.parametrize("readiness", [{}, {"database": 1}, {"database": {"ready": "no"}}])
async def test_answer_that_is_no_readiness_counts_as_not_ready(readiness: dict[str, object]) -> None:
    async with client(Way("one.example", "", readiness)) as calls:
        answer = await calls.get("/readyz")
    assert answer.status_code == 503
    assert "does not say" in answer.json()["data"]["database"]["message"]


async def test_standby_whose_way_is_cut_off_answers_503_that_names_it() -> None:
    async with client(FAULT) as calls:
        for method, path in (("GET", "/readyz"), ("GET", "/"), ("POST", "/api/v1/builders"), ("DELETE", "/api/v1/x")):
            answer = await calls.request(method, path)
            assert answer.status_code == 503
            assert int(answer.headers["Retry-After"]) > 0
            assert "stands by for the service on one.example" in answer.json()["message"]
            assert "Connection refused" in answer.json()["message"]
            assert answer.json()["code"] == "engine_unavailable"
        assert (await calls.get("/healthz")).json()["data"]["way"]["ready"] is False


async def test_metrics_of_a_standby_need_the_token() -> None:
    async with client(Way("one.example", ""), "right") as calls:
        for given in (None, "", "Bearer wrong", "Bearer ", "right", "bearer right", "Bearer r\xefght"):
            headers = {} if given is None else {"Authorization": given.encode("latin-1")}
            answer = await calls.get("/metrics", headers=headers)  # type: ignore[arg-type]
            assert answer.status_code == 401, given
        text = (await calls.get("/metrics", headers={"Authorization": "Bearer right"})).text
    assert "\nbuilderd_standby 1\n" in text
    assert "\nbuilderd_standby_way_up 1\n" in text
    async with client(Way("one.example", "")) as calls:
        assert (await calls.get("/metrics", headers={"Authorization": "Bearer None"})).status_code == 404


async def test_metrics_port_of_a_standby_has_nothing_else() -> None:
    transport = httpx.ASGITransport(create_standby_metrics(lambda: FAULT))
    async with httpx.AsyncClient(transport=transport, base_url="http://standby") as calls:
        assert "\nbuilderd_standby_way_up 0\n" in (await calls.get("/metrics")).text
        assert (await calls.get("/readyz")).status_code == 404
