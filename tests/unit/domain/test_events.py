"""Patterns name types of events."""

from __future__ import annotations

import pytest

from builderd.domain.events import is_pattern, matches


@pytest.mark.parametrize("text", ["*", "builder.status", "builder.*", "backup.restore.done", "stage.started"])
def test_a_pattern_is_a_type_a_word_with_a_star_or_a_star(text: str) -> None:
    assert is_pattern(text)


@pytest.mark.parametrize(
    "text", ["", ".", "builder.", "*.status", "Builder.status", "a b", "b.*.c", "**", "x" * 65, "b\n"]
)
def test_anything_else_is_none(text: str) -> None:
    assert not is_pattern(text)


def test_a_pattern_names_what_lies_below_its_word_and_nothing_beside_it() -> None:
    assert matches(["builder.*"], "builder.status")
    assert matches(["builder.*"], "builder.disk.grown")
    assert not matches(["builder.*"], "builders.status")
    assert not matches(["builder.*"], "builder")
    assert matches(["stage.started", "builder.status"], "builder.status")
    assert not matches(["builder.status"], "builder.status.x")
    assert matches(["*"], "anything.at_all")
    assert not matches([], "builder.status")
