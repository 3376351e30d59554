"""Each test file is in a part of script/test, and heavy.txt names files that are there."""

from __future__ import annotations

import re

from tests.acceptance.on_engines import EVERY_RUN, NOT_ON_INCUS
from tests.parts import ROOT, files, heavy, may_use_incus


def test_each_file_is_in_a_part_unless_all_of_it_is_for_the_soak() -> None:
    left_out = set(ROOT.rglob("test_*.py")) - {file for part in ("real", "heavy", "fast") for file in files(part)}
    marks = {
        file.name: [line for line in file.read_text().splitlines() if line.startswith("pytestmark = ")]
        for file in left_out
    }
    assert [name for name, lines in marks.items() if not any("mark.slow" in line for line in lines)] == []


def test_heavy_files_are_there_and_not_among_the_fast() -> None:
    assert [file for file in sorted(heavy()) if not file.exists()] == []
    assert heavy().isdisjoint(files("fast"))


def test_tests_named_for_incus_are_there_and_run_on_each_engine() -> None:
    files = [file for file in (ROOT / "acceptance").glob("test_*.py") if may_use_incus(file)]
    names = {name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)}
    assert EVERY_RUN | NOT_ON_INCUS.keys() <= names
    assert EVERY_RUN.isdisjoint(NOT_ON_INCUS)
