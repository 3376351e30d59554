"""Commands that may run beside an app."""

from __future__ import annotations

import pytest

from builderd.domain.sandboxes import MAX_COMMAND_BYTES, command_error


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
