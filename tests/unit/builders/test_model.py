"""Names, and when what was wanted has come about."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.unit.samples import BUILDER, NOW, make_builder

from builderd.builders.model import (
    NAME,
    Desired,
    IdleAction,
    JobType,
    Lease,
    LeaseId,
    Status,
    can_idle,
    freeze_reason,
    idle_action,
    name_error,
    stop_reason,
)


@pytest.mark.parametrize("name", ["a", "0", "my-api", "a--b", "x" * 63, "a" * 31 + "-" + "b" * 31, "xn", "xn-a"])
def test_a_dns_label_is_a_name(name: str) -> None:
    assert name_error(name) is None


@pytest.mark.parametrize(
    "name",
    [
        *("", "-", "-a", "a-", "A", "aB", "a_b", "a.b", "a b", " a", "a\n", "a\0", "é", "a" * 64, "../x", "a/b"),
        *("\N{ARABIC-INDIC DIGIT ONE}", "\N{FULLWIDTH LATIN SMALL LETTER A}", "\ud800", "'; drop table builders --"),
    ],
)
def test_name_must_be_a_dns_label(name: str) -> None:
    assert name_error(name) is not None


@pytest.mark.parametrize("name", ["xn--", "xn--a", "xn--80ak6aa92e"])
def test_names_do_not_imitate_international_ones(name: str) -> None:
    fault = name_error(name)
    assert fault is not None
    assert "xn--" in fault or "hyphens" in fault


@given(st.text(max_size=70))
@example("a\n")
def test_every_accepted_name_is_ascii_and_a_label(name: str) -> None:
    if name_error(name) is None:
        assert re.fullmatch(r"[a-z0-9-]{1,63}", name, re.ASCII)
        assert not name.startswith(("-", "xn--"))
        assert not name.endswith("-")


@given(st.from_regex(NAME, fullmatch=True))
def test_only_international_names_are_refused_among_well_formed_ones(name: str) -> None:
    assert (name_error(name) is None) is not name.startswith("xn--")


@pytest.mark.parametrize(
    ("desired", "status", "observed_generation", "settled"),
    [
        (Desired.RUNNING, Status.CREATING, 0, False),
        (Desired.RUNNING, Status.RUNNING, 1, True),
        # wanted again while the earlier run still goes on
        (Desired.RUNNING, Status.RUNNING, 0, False),
        (Desired.RUNNING, Status.STOPPED, 0, False),
        (Desired.STOPPED, Status.RUNNING, 1, False),
        (Desired.STOPPED, Status.CREATING, 0, False),
        (Desired.STOPPED, Status.STOPPED, 1, True),
        # stopped while a start went on: its sandbox may run still
        (Desired.STOPPED, Status.STOPPED, 0, False),
        (Desired.STOPPED, Status.FAILED, 1, True),
        (Desired.STOPPED, Status.COMPLETED, 1, True),
        (Desired.DELETED, Status.STOPPED, 1, False),
        (Desired.DELETED, Status.DELETED, 0, True),
    ],
)
def test_settled_builder_has_its_observed_generation(
    desired: Desired, status: Status, observed_generation: int, settled: bool
) -> None:
    builder = make_builder(desired=desired, status=status, generation=1, observed_generation=observed_generation)
    assert builder.settled is settled


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
