"""Scopes and expiry of tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.unit.domain.samples import NOW, SECOND, TENANT

from builderd.domain.ids import TokenId
from builderd.domain.tokens import Scope, Token

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
