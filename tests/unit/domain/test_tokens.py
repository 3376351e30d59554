"""Scopes and expiry of tokens."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from tests.unit.domain.samples import NOW, SECOND, TENANT

from builderd.domain.ids import TokenId
from builderd.domain.tokens import HOURS, CallHours, Scope, Token

TOKEN = Token(TokenId("t"), TENANT, "ci", "0" * 64, frozenset({Scope.WRITE}), NOW)


@pytest.mark.parametrize(
    ("held", "allowed"),
    [
        ([], ""),
        ([Scope.READ], "read"),
        ([Scope.WRITE], "read write"),
        ([Scope.SKIP_GATES], "skip-gates"),
        ([Scope.READ, Scope.SKIP_GATES], "read skip-gates"),
        ([Scope.ADMIN], "read write skip-gates admin"),
    ],
)
def test_a_token_allows_its_scopes_and_what_they_include(held: list[Scope], allowed: str) -> None:
    token = replace(TOKEN, scopes=frozenset(held))
    assert [scope.value for scope in Scope if token.allows(scope)] == allowed.split()


def test_a_token_is_valid_until_it_expires_or_is_revoked() -> None:
    assert TOKEN.is_valid(NOW)
    brief = replace(TOKEN, expires_at=NOW + SECOND)
    assert brief.is_valid(NOW)
    assert not brief.is_valid(NOW + SECOND)
    assert not replace(TOKEN, revoked_at=NOW).is_valid(NOW)


NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


def test_calls_are_those_of_the_last_hours() -> None:
    calls = CallHours().add(5, NOON).add(1, NOON + timedelta(minutes=59)).add(3, NOON + 2 * HOUR)
    assert calls.counts == (6, 0, 3)
    assert [calls.of_day(NOON + hours * HOUR) for hours in (2, 23, 24, 25, 26, 100)] == [9, 9, 3, 3, 0, 0]


def test_hours_of_calls_are_limited() -> None:
    calls = CallHours()
    for hours in (*range(50), 500, 501):
        calls = calls.add(1, NOON + hours * HOUR)
        assert len(calls.counts) <= HOURS
    assert calls.of_day(NOON + 501 * HOUR) == 2


def test_calls_of_another_count_are_added_in_their_own_hours() -> None:
    used = CallHours().add(1, NOON)
    pending = CallHours().add(50, NOON).add(2, NOON + 3 * HOUR)
    both = used.add_all(pending)
    assert (both.counts, both.of_day(NOON + 3 * HOUR), both.of_day(NOON + 24 * HOUR)) == ((51, 0, 0, 2), 53, 2)
    assert pending.add_all(used) == both
    assert CallHours().add_all(pending) == pending.add_all(CallHours()) == pending
    # One that comes a day later finds the old calls gone; one that is older than all kept is counted in the oldest.
    later = CallHours().add(7, NOON + 30 * HOUR)
    assert both.add_all(later).of_day(NOON + 30 * HOUR) == 7
    assert later.add_all(used).counts == (1, *([0] * (HOURS - 2)), 7)


def test_clock_that_was_set_back_loses_no_calls() -> None:
    calls = CallHours().add(5, NOON).add(2, NOON - 3 * HOUR)
    assert calls.of_day(NOON) == calls.of_day(NOON - 3 * HOUR) == 7
