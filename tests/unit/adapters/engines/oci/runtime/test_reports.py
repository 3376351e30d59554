"""Reports of sandboxes, made from their records and exit files."""

from __future__ import annotations

from dataclasses import replace

import pytest

from builderd.adapters.engines.oci.runtime.records import Exit, Record, moment
from builderd.adapters.engines.oci.runtime.reports import make_end, make_report
from builderd.domain.sandboxes import EndCause, SandboxState
from builderd.linux.processes import Process

RECORD = Record(
    id="ab12",
    owner="b",
    disk="d",
    runtime="crun",
    slot=3,
    ip="10.64.8.5",
    port=8000,
    boot="now",
    process=Process(100, 1),
    shim=Process(99, 1),
    started_at=1000.0,
)


def test_sandbox_that_was_not_started_is_incomplete() -> None:
    report = make_report(replace(RECORD, started_at=None), running=False, exit_=None, oom=None, boot="now")
    assert (report.state, report.ip, report.started_at) == (SandboxState.PARTIAL, None, None)


def test_a_running_one_has_an_address() -> None:
    report = make_report(RECORD, running=True, exit_=None, oom=None, boot="now")
    assert (report.state, report.ip, report.end) == (SandboxState.RUNNING, "10.64.8.5", None)


def test_a_frozen_one_has_its_address_still() -> None:
    record = replace(RECORD, frozen_at=1001.0, thawed_at=1000.5)
    report = make_report(record, running=True, frozen=True, exit_=None, oom=None, boot="now")
    assert (report.state, report.ip) == (SandboxState.FROZEN, "10.64.8.5")
    assert (report.frozen_at, report.thawed_at) == (moment(1001.0), moment(1000.5))


@pytest.mark.parametrize(
    ("oom", "reported"), [(EndCause.OUT_OF_MEMORY, True), (EndCause.HOST_OUT_OF_MEMORY, False), (None, False)]
)
def test_only_kills_at_the_own_limit_are_reported_of_a_running_one(oom: EndCause | None, reported: bool) -> None:
    assert make_report(RECORD, running=True, exit_=None, oom=oom, boot="now").out_of_memory is reported


@pytest.mark.parametrize(
    ("record", "exit_", "oom", "boot", "cause", "code"),
    [
        pytest.param(RECORD, Exit(7, 2000), None, "now", EndCause.EXITED, 7, id="by itself"),
        pytest.param(
            RECORD, Exit(137, 2000), None, "now", EndCause.EXITED, 137, id="a KILL from inside is no memory limit"
        ),
        pytest.param(
            RECORD, Exit(137, 2000), EndCause.OUT_OF_MEMORY, "now", EndCause.OUT_OF_MEMORY, 137, id="for memory"
        ),
        pytest.param(
            RECORD,
            Exit(137, 2000),
            EndCause.HOST_OUT_OF_MEMORY,
            "now",
            EndCause.HOST_OUT_OF_MEMORY,
            137,
            id="for the memory of the host",
        ),
        pytest.param(
            RECORD,
            Exit(1, 2000),
            EndCause.OUT_OF_MEMORY,
            "now",
            EndCause.OUT_OF_MEMORY,
            1,
            id="for memory, by its parent's word",
        ),
        pytest.param(
            RECORD,
            Exit(0, 2000),
            EndCause.OUT_OF_MEMORY,
            "now",
            EndCause.EXITED,
            0,
            id="well, though a worker was killed once",
        ),
        pytest.param(
            replace(RECORD, stopping_at=1999.99), Exit(143, 2000), None, "now", EndCause.STOPPED, 143, id="stopped"
        ),
        pytest.param(
            replace(RECORD, stopping_at=2000.01),
            Exit(143, 2000),
            None,
            "now",
            EndCause.STOPPED,
            143,
            id="file times lag",
        ),
        pytest.param(
            replace(RECORD, stopping_at=2001),
            Exit(7, 2000),
            None,
            "now",
            EndCause.EXITED,
            7,
            id="before it was stopped",
        ),
        pytest.param(RECORD, None, None, "now", EndCause.MONITOR_LOST, None, id="its shim was killed"),
        pytest.param(RECORD, None, EndCause.OUT_OF_MEMORY, "now", EndCause.MONITOR_LOST, None, id="memory or not"),
        pytest.param(RECORD, None, None, "later", EndCause.HOST_RESTARTED, None, id="machine restarted"),
        pytest.param(RECORD, Exit(7, 2000), None, "later", EndCause.EXITED, 7, id="ended before the machine restarted"),
        pytest.param(
            replace(RECORD, stopping_at=1), None, None, "now", EndCause.STOPPED, None, id="killed with its shim"
        ),
    ],
)
def test_causes(
    record: Record, exit_: Exit | None, oom: EndCause | None, boot: str, cause: EndCause, code: int | None
) -> None:
    end = make_end(record, exit_, oom, boot)
    assert (end.cause, end.exit_code) == (cause, code)
    assert (end.at is None) == (exit_ is None)


def test_after_a_crash_of_the_machine_the_end_is_when_it_was_last_seen() -> None:
    end = make_end(replace(RECORD, seen_at=1500.5), None, None, "later")
    assert (end.cause, end.at) == (EndCause.HOST_RESTARTED, moment(1500.5))


def test_end_is_not_before_the_start() -> None:
    assert make_end(replace(RECORD, seen_at=999.5), None, None, "later").at == moment(1000.0)


@pytest.mark.parametrize(
    ("code", "at", "cause"),
    [
        (143, 1500.7, EndCause.HOST_RESTARTED),
        (137, 1499.0, EndCause.HOST_RESTARTED),
        (143, 1400.0, EndCause.EXITED),
        (0, 1500.7, EndCause.EXITED),
        (1, 1500.7, EndCause.EXITED),
    ],
)
def test_machine_shutdown_is_not_a_crash(code: int, at: float, cause: EndCause) -> None:
    end = make_end(replace(RECORD, seen_at=1500.5), Exit(code, at), None, "later")
    assert (end.cause, end.at) == (cause, moment(at))
