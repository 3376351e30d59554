"""Each test file is in a part of script/test, and heavy.txt names files that are there."""

from __future__ import annotations

from tests.parts import ROOT, files, heavy


def test_each_file_is_in_a_part() -> None:
    assert {file for part in ("real", "heavy", "fast") for file in files(part)} == set(ROOT.rglob("test_*.py"))


def test_heavy_files_are_there_and_not_among_the_fast() -> None:
    assert [file for file in sorted(heavy()) if not file.exists()] == []
    assert heavy().isdisjoint(files("fast"))
