"""Causes of an instance's end, from its own record and Incus's state."""

from __future__ import annotations

import json

import pytest

from builderd.adapters.engines.incus.reports import Exit, make_end, make_report, state_of
from builderd.domain.errors import EngineUnavailable
from builderd.domain.sandboxes import EndCause, SandboxState

OWN = {"builder": "b", "started": "100", "ip": "10.99.0.9"}


def cause(exit_: Exit | None, *, restarted: bool = False, **own: str) -> tuple[str, int | None]:
    end = json.loads(make_end({**OWN, **own}, exit_, host_restarted=restarted, now=200))
    return end["cause"], end["code"]


def test_app_that_exits_by_itself() -> None:
    assert cause(Exit(7, False, 150)) == (EndCause.EXITED, 7)


def test_memory_is_the_cause_only_of_a_failure() -> None:
    assert cause(Exit(137, True, 150)) == (EndCause.OUT_OF_MEMORY, 137)
    assert cause(Exit(0, True, 150)) == (EndCause.EXITED, 0)


def test_stop_by_the_service_with_and_without_a_record() -> None:
    assert cause(Exit(143, False, 151), stopping="150") == (EndCause.STOPPED, 143)
    assert cause(None, stopping="150") == (EndCause.STOPPED, None)
    assert cause(Exit(1, False, 120), stopping="150") == (EndCause.EXITED, 1)


def test_machine_that_restarts_under_it() -> None:
    assert cause(None, restarted=True) == (EndCause.HOST_RESTARTED, None)
    assert cause(Exit(143, False, 150), restarted=True) == (EndCause.HOST_RESTARTED, None)
    assert cause(Exit(3, False, 150), restarted=True) == (EndCause.EXITED, 3)


def test_end_without_a_record_is_a_lost_monitor() -> None:
    assert cause(None) == (EndCause.MONITOR_LOST, None)


def instance(status: str, **own: str) -> dict[str, object]:
    config = {f"user.builderd.{key}": value for key, value in {**OWN, **own}.items()}
    return {"name": "s-1", "status": status, "location": "node3", "config": config}


def test_states() -> None:
    assert state_of(instance("Running")) is SandboxState.RUNNING
    assert state_of(instance("Frozen")) is SandboxState.FROZEN
    assert state_of(instance("Stopped")) is SandboxState.EXITED


def test_recorded_end_wins_over_an_instance_that_was_started_again() -> None:
    end = make_end(OWN, Exit(0, False, 150), host_restarted=False, now=200)
    report = make_report(instance("Running", end=end))
    assert (report.state, report.ip) == (SandboxState.EXITED, None)


def test_member_that_is_away_is_a_fault_of_the_machine() -> None:
    with pytest.raises(EngineUnavailable, match="node3") as raised:
        state_of(instance("Error"))
    assert raised.value.retry_after
