"""Calls of tokens, counted in bounded memory."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from builderd.domain.ids import TokenId
from builderd.domain.tokens import NO_CALLS
from builderd.operations import last_uses
from builderd.operations.last_uses import TokenCalls

NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


def test_calls_are_taken_once_each_in_its_hour() -> None:
    calls = TokenCalls()
    for hours in (0, 0, 2):
        calls.count(TokenId("a"), NOW + timedelta(hours=hours))
    pending = calls.pending(TokenId("a"))
    assert pending.counts == (2, 0, 1)
    assert (calls.take(TokenId("a")), calls.take(TokenId("a"))) == (pending, NO_CALLS)


def test_counters_are_limited_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(last_uses, "MAX_TOKENS", 2)
    calls = TokenCalls()
    for name in "abac":
        calls.count(TokenId(name), NOW)
    assert [calls.pending(TokenId(name)).of_day(NOW) for name in "abc"] == [2, 0, 1]
