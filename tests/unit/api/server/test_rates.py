"""Rate limits of the API: their headers, and the answers to calls over them."""

from __future__ import annotations

import httpx
import pytest
from tests.service import METRICS_TOKEN, Service

from builderd.operations.rates import Rates

BUILDERS = "/api/v1/builders"


class Time:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def now() -> Time:
    return Time()


async def test_each_answer_says_how_the_token_stands(client: httpx.AsyncClient, service: Service, now: Time) -> None:
    service.app.state.rates = Rates(now=now)
    for remaining, path in ((5999, BUILDERS), (5998, f"{BUILDERS}/nobody")):
        headers = (await client.get(path)).headers
        assert headers["RateLimit-Policy"] == '"requests";q=6000;w=60'
        assert headers["RateLimit"] == f'"requests";r={remaining};t=1'
        triple = [headers[f"RateLimit-{name}"] for name in ("Limit", "Remaining", "Reset")]
        assert triple == ["6000", str(remaining), "1"]
    assert "RateLimit" not in (await client.get("/healthz")).headers


async def test_a_call_too_many_is_429_and_another_token_is_not_concerned(service: Service, now: Time) -> None:
    service.app.state.rates = Rates(requests=2, now=now)
    client = service.client(service.write)
    assert [(await client.get(BUILDERS)).status_code for _ in range(3)] == [200, 200, 429]
    refused = await client.post(BUILDERS, json={})
    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
    assert (refused.headers["Retry-After"], refused.headers["RateLimit"]) == ("30", '"requests";r=0;t=60')
    assert "2 calls a minute" in refused.json()["message"]
    assert (await service.client(service.read).get(BUILDERS)).status_code == 200
    now.seconds += 30
    assert (await client.get(BUILDERS)).status_code == 200


async def test_wrong_tokens_are_limited_without_affecting_valid_ones(service: Service, now: Time) -> None:
    service.app.state.rates = Rates(failures=3, now=now)
    guesses = [await service.client(f"bd_{number}").get(BUILDERS) for number in range(5)]
    assert [guess.status_code for guess in guesses] == [401, 401, 401, 429, 429]
    assert guesses[-1].headers["Retry-After"] == "20"
    # Neither is in anybody's memory yet.
    assert (await service.client(service.write).get(BUILDERS)).status_code == 200
    assert (await service.client(service.read).get(BUILDERS)).status_code == 200


async def test_guesses_at_the_metrics_token_count_too(service: Service, now: Time) -> None:
    service.app.state.rates = Rates(failures=1, now=now)
    assert [(await service.client(guess).get("/metrics")).status_code for guess in ("a", "b")] == [401, 429]
    assert (await service.client(METRICS_TOKEN).get("/metrics")).status_code == 200
    now.seconds += 60
    assert (await service.client("c").get("/metrics")).status_code == 401
