"""Rate limits: so many calls a token, so many wrong tokens an address, and nobody pays for another."""

from __future__ import annotations

import pytest

from builderd.domain.errors import RateLimited
from builderd.operations import rates
from builderd.operations.rates import Buckets, RateLimitStatus, Rates


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
    assert buckets.peek("a") == RateLimitStatus(6, remaining=6, reset=0)


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


def test_wrong_tokens_of_one_address_are_refused_for_a_while(now: Time) -> None:
    limited = Rates(failures=3, now=now)
    for number in range(3):
        limited.failed("192.0.2.1", f"guess-{number}")
    with pytest.raises(RateLimited, match="too many such") as refused:
        limited.failed("192.0.2.1", "guess-4")
    assert refused.value.retry_after == 20
    limited.failed("192.0.2.2", "guess-4")
    now.seconds += 20
    limited.failed("192.0.2.1", "guess-4")


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


def test_zero_limit_counts_nothing(now: Time) -> None:
    free = Rates(requests=0, failures=0, now=now)
    for _ in range(1000):
        free.failed("192.0.2.1", "bad")
    assert free.admit("bad") is None
    assert free.count("good") is None
