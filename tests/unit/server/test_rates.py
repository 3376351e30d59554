"""Limits of calls: rates, things at the same time, and the calls that are counted of each token."""

from __future__ import annotations

from datetime import UTC, datetime

import httpx
import pytest
from tests.service import METRICS_TOKEN, Service

from builderd.core.errors import RateLimited
from builderd.core.ids import TenantId, TokenId
from builderd.server import rates
from builderd.server.operations import ConcurrencyLimit
from builderd.server.rates import Buckets, RateLimitStatus, Rates, TokenCalls


class Time:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def now() -> Time:
    return Time()


def test_a_minutes_worth_may_come_at_once_and_flows_back_evenly(now: Time) -> None:
    buckets = Buckets(6, now)
    assert buckets.take("a") == RateLimitStatus(6, remaining=5, reset=10)
    for _ in range(5):
        last = buckets.take("a")
    assert last == RateLimitStatus(6, remaining=0, reset=60)
    assert buckets.take("a") == RateLimitStatus(6, remaining=0, reset=60, retry_after=10)
    now.seconds += 9.5
    assert buckets.take("a").retry_after == 1
    now.seconds += 0.5
    assert buckets.take("a").retry_after is None
    now.seconds += 600
    assert buckets.take("a") == RateLimitStatus(6, remaining=5, reset=10)


def test_call_after_retry_after_is_admitted(now: Time) -> None:
    for limit in (1, 7, 60, 999):
        buckets = Buckets(limit, now)
        while (retry := buckets.take("a").retry_after) is None:
            pass
        now.seconds += retry
        assert buckets.take("a").retry_after is None


def test_no_more_are_remembered_than_there_is_room_for(now: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "MAX_BUCKETS", 3)
    buckets = Buckets(6, now)
    for key in "abcad":
        buckets.take(key)
    assert [key for key in "abcd" if key in buckets] == ["a", "c", "d"]


def test_a_call_too_many_is_known_before_its_token_is_looked_up_unless_that_ended(now: Time) -> None:
    limited = Rates(requests=1, now=now)
    assert limited.admit("good") is None
    limited.count("good")
    standing = limited.admit("good")
    assert standing is not None
    assert standing.retry_after == 60
    limited.failed("192.0.2.1", "good")  # it was revoked
    assert limited.admit("good") is None


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("unix", "unix", True),
    ],
)
def test_addresses_of_one_host_share_a_rate(now: Time, one: str, other: str, same: bool) -> None:
    limited = Rates(failures=1, now=now)
    limited.failed(one, "bad")
    if same:
        with pytest.raises(RateLimited):
            limited.failed(other, "another")
    else:
        limited.failed(other, "another")


NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


def test_counters_are_limited_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "MAX_TOKENS", 2)
    calls = TokenCalls()
    for name in "abac":
        calls.count(TokenId(name), NOW)
    assert [calls.pending(TokenId(name)).of_day(NOW) for name in "abc"] == [2, 0, 1]


ACME, OTHER = TenantId("acme"), TenantId("other")


def test_a_tenant_has_so_many_at_a_time_and_leaves_the_rest_to_others() -> None:
    limit = ConcurrencyLimit(2, "archives of yours are being sent already.")
    with limit.acquire(ACME):
        with limit.acquire(ACME):
            with pytest.raises(RateLimited, match=r"2 archives of yours") as refused, limit.acquire(ACME):
                pass
            assert refused.value.retry_after == 10
            with limit.acquire(OTHER):
                assert limit.total() == 3
        with limit.acquire(ACME):
            assert limit.total() == 2
    assert limit.total() == 0


def test_failed_call_releases_its_slot() -> None:
    limit = ConcurrencyLimit(1, "files.")
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"), limit.acquire(ACME):
            raise ValueError("broken")
    assert limit.total() == 0


BUILDERS = "/api/v1/builders"


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
