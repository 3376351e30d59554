"""Decisions when an idle builder is frozen, and when it is auto-stopped."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.unit.domain.samples import BUILDER, NOW, make_builder

from builderd.domain.builders import (
    Desired,
    IdleAction,
    JobType,
    Lease,
    LeaseId,
    Status,
    can_idle,
    freeze_reason,
    idle_action,
    stop_reason,
)

UP = make_builder(status=Status.RUNNING, observed_generation=1, auto_stop_interval=15, last_active_at=NOW)
MINUTE = timedelta(minutes=1)
LEASE = Lease(LeaseId("a"), BUILDER, "an import", "token ci", NOW, NOW + 20 * MINUTE)


def verdict(after: timedelta, **changes: Any) -> IdleAction | None:
    options = {"leases": (), "freeze_after": MINUTE, "cpu_idle_for": after, **changes}
    return idle_action(options.pop("builder", UP), options.pop("leases"), NOW + after, **options)


def test_idle_builder_is_frozen_and_then_auto_stopped() -> None:
    assert verdict(MINUTE - timedelta(seconds=1)) is None
    assert verdict(MINUTE) is IdleAction.FREEZE
    assert verdict(15 * MINUTE) is IdleAction.STOP


def test_cpu_use_prevents_freeze_but_not_auto_stop() -> None:
    assert verdict(10 * MINUTE, cpu_idle_for=MINUTE / 2) is None
    assert verdict(15 * MINUTE, cpu_idle_for=timedelta()) is IdleAction.STOP


def test_where_freezing_is_off_it_is_only_stopped() -> None:
    assert verdict(10 * MINUTE, freeze_after=None) is None
    assert verdict(15 * MINUTE, freeze_after=None) is IdleAction.STOP


def test_frozen_builder_is_only_auto_stopped() -> None:
    asleep = replace(UP, asleep_since=NOW)
    assert verdict(10 * MINUTE, builder=asleep) is None
    assert verdict(15 * MINUTE, builder=asleep) is IdleAction.STOP


def test_a_lease_keeps_it_busy_and_its_end_counts_as_a_use() -> None:
    assert verdict(19 * MINUTE, leases=[LEASE]) is None
    assert verdict(20 * MINUTE, leases=[LEASE]) is None
    assert verdict(21 * MINUTE, leases=[LEASE]) is IdleAction.FREEZE
    assert verdict(35 * MINUTE, leases=[LEASE]) is IdleAction.STOP


@pytest.mark.parametrize(
    "changes",
    [
        {"auto_stop_interval": 0},
        {"job_type": JobType.ONE_TIME},
        {"desired": Desired.STOPPED},
        {"status": Status.FAILED},
        {"observed_generation": 0},
        {"candidate": 2},
    ],
    ids=str,
)
def test_these_are_never_touched(changes: dict[str, Any]) -> None:
    builder = replace(UP, **changes)
    assert not can_idle(builder)
    assert verdict(timedelta(days=30), builder=builder) is None


def test_the_reasons_are_for_people() -> None:
    assert stop_reason(UP) == "idle for 15 minutes"
    assert stop_reason(replace(UP, auto_stop_interval=1)) == "idle for 1 minute"
    assert freeze_reason(MINUTE) == "idle for 60 seconds"
