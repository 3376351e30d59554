"""Commands that may run beside an app."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from builderd.domain.ids import SandboxId
from builderd.domain.sandboxes import MAX_COMMAND_BYTES, SandboxReport, SandboxState, command_error


@pytest.mark.parametrize("command", ["ls", "ls -l | wc\n", "é", "x" * MAX_COMMAND_BYTES])
def test_valid_command_is_accepted(command: str) -> None:
    assert command_error(command) is None


@pytest.mark.parametrize(
    ("command", "why"),
    [
        *(("", "blank"), (" \n", "blank"), ("a\0b", "NUL"), ("\ud800", "Unicode")),
        *(("x" * (MAX_COMMAND_BYTES + 1), "100000"), ("é" * MAX_COMMAND_BYTES, "100000")),
    ],
)
def test_invalid_command_is_rejected_with_a_reason(command: str, why: str) -> None:
    assert why in (command_error(command) or "")


@pytest.mark.parametrize(
    ("state", "frozen", "thawed", "sleeps"),
    [
        (SandboxState.FROZEN, 1, None, True),
        (SandboxState.FROZEN, 2, 1, True),
        (SandboxState.FROZEN, 2, 2, True),
        (SandboxState.FROZEN, None, None, False),
        (SandboxState.FROZEN, 1, 2, False),
        (SandboxState.RUNNING, 2, 1, False),
        (SandboxState.EXITED, 1, None, False),
    ],
)
def test_sandbox_sleeps_where_its_last_freeze_was_written_down(
    state: SandboxState, frozen: int | None, thawed: int | None, sleeps: bool
) -> None:
    times = [
        None if second is None else datetime(2026, 11, 30, second=second, tzinfo=UTC) for second in (frozen, thawed)
    ]
    report = SandboxReport(SandboxId("s"), None, state, frozen_at=times[0], thawed_at=times[1])
    assert report.sleeps is sleeps
