"""Conditions under which an instance may take the database lease."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from builderd.core.members import (
    REBOOTED_AFTER,
    STALE_AFTER,
    DatabaseLease,
    Instance,
    describe_owner,
    needed_silence,
)

OWNER = Instance("host-1", "one.example", "/srv/builderd", "identity-1", "boot-1")
LEASE = DatabaseLease(OWNER, 7, datetime(2026, 1, 31, tzinfo=UTC), 3.0)
REBOOTED = replace(OWNER, boot_id="boot-2")
MOVED = replace(OWNER, data_dir="/mnt/builderd", host_name="renamed.example")
ELSEWHERE = replace(OWNER, host_id="host-2")
NEW = replace(OWNER, identity="identity-2")


@pytest.mark.parametrize(
    ("instance", "released", "take_over", "silence"),
    [
        (OWNER, False, False, 0.0),
        (MOVED, False, False, 0.0),
        (REBOOTED, True, False, 0.0),
        (REBOOTED, False, False, REBOOTED_AFTER),
        (ELSEWHERE, False, False, None),
        (ELSEWHERE, True, False, None),
        (NEW, True, False, None),
        (ELSEWHERE, False, True, STALE_AFTER),
        (ELSEWHERE, True, True, 0.0),
        (NEW, False, True, STALE_AFTER),
    ],
)
def test_how_long_the_owner_must_have_been_silent(
    instance: Instance, released: bool, take_over: bool, silence: float | None
) -> None:
    assert needed_silence(replace(LEASE, released=released), instance, take_over=take_over) == silence


def test_builders_carry_a_name_that_outlives_restarts_and_moves_but_no_other_host() -> None:
    assert OWNER.member == REBOOTED.member == MOVED.member
    assert len({OWNER.member, ELSEWHERE.member, NEW.member}) == 3


@pytest.mark.parametrize(
    ("age", "released", "words"),
    [
        (3.4, False, "last seen 3 seconds ago"),
        (150, False, "last seen 2 minutes ago"),
        (7200, True, "stopped 2 hours ago"),
        (200_000, True, "stopped 2 days ago"),
        (-3600, False, "clock was set back"),
    ],
)
def test_a_message_names_host_data_directory_and_when(age: float, released: bool, words: str) -> None:
    text = describe_owner(replace(LEASE, age=age, released=released))
    assert "one.example" in text
    assert "/srv/builderd" in text
    assert words in text
