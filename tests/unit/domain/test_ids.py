"""Identifiers and secrets."""

from __future__ import annotations

import hashlib
import re

import pytest

from builderd.domain.ids import is_id, new_id, new_sandbox_id, new_secret, secret_hash


def test_ids_are_uuids_and_differ() -> None:
    ids = {new_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(is_id(one) for one in ids)


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "1A2B3C4D-0000-4000-8000-000000000000", "1a2b3c4d000040008000000000000000", "../", "\ud800", "*"),
        *("1a2b3c4d-0000-4000-8000-000000000000\n", " 1a2b3c4d-0000-4000-8000-000000000000"),
    ],
)
def test_malformed_id_is_rejected(text: str) -> None:
    assert not is_id(text)


def test_sandboxes_are_named_by_16_hex_characters() -> None:
    assert re.fullmatch("[0-9a-f]{16}", new_sandbox_id())
    assert new_sandbox_id() != new_sandbox_id()


def test_a_secret_is_long_random_and_fit_for_a_header() -> None:
    one, other = new_secret("bd"), new_secret("bd")
    assert one != other
    assert re.fullmatch(r"bd_[A-Za-z0-9_-]{43}", one)


def test_a_secret_is_known_by_its_sha256() -> None:
    assert secret_hash("bd_x") == hashlib.sha256(b"bd_x").hexdigest()


def test_no_text_is_too_odd_to_be_looked_up_as_a_secret() -> None:
    assert len(secret_hash("\ud800\0é")) == 64
