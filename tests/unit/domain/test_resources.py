"""Amounts are inside their bounds, whatever kind of number is sent."""

from __future__ import annotations

import math

import pytest

from builderd.domain.resources import GB, MINIMUM, Resources, resource_errors

MAXIMUM = Resources(cpu=8, memory=16, disk=100)


def test_the_bounds_themselves_are_taken() -> None:
    assert resource_errors(MINIMUM, MAXIMUM) == {}
    assert resource_errors(MAXIMUM, MAXIMUM) == {}
    assert resource_errors(Resources(), MAXIMUM) == {}


@pytest.mark.parametrize("amount", [0, -0.0, -1, 0.1, math.nan, math.inf, -math.inf, 1e9, 10**400, 100.0001])
@pytest.mark.parametrize("name", ["cpu", "memory", "disk"])
def test_resource_out_of_bounds_is_rejected_by_name(name: str, amount: float) -> None:
    faults = resource_errors(Resources(**{name: amount}), MAXIMUM)
    assert list(faults) == [name]
    assert "must be from" in faults[name]


def test_message_has_bounds_and_unit() -> None:
    faults = resource_errors(Resources(cpu=9, memory=0, disk=0), MAXIMUM)
    assert faults == {
        "cpu": "must be from 0.25 to 8 vCPU",
        "memory": "must be from 0.125 to 16 GB",
        "disk": "must be from 1 to 100 GB",
    }


def test_a_gb_is_two_to_the_thirtieth_bytes() -> None:
    assert (Resources(memory=0.125).memory_bytes, Resources(disk=3).disk_bytes) == (GB // 8, 3 * GB)
