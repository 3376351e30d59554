"""Calls of tokens, counted in bounded memory."""

from __future__ import annotations

import pytest

from builderd.domain.ids import TokenId
from builderd.operations import token_calls
from builderd.operations.token_calls import TokenCalls


def test_calls_are_taken_once() -> None:
    calls = TokenCalls()
    for _ in range(3):
        calls.count(TokenId("a"))
    assert (calls.pending(TokenId("a")), calls.take(TokenId("a")), calls.take(TokenId("a"))) == (3, 3, 0)


def test_counters_are_limited_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_calls, "MAX_TOKENS", 2)
    calls = TokenCalls()
    for name in "abac":
        calls.count(TokenId(name))
    assert [calls.pending(TokenId(name)) for name in "abc"] == [2, 0, 1]
