"""Each test file is in a part of script/test, and heavy.txt names files that are there."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.acceptance.conftest import pytest_generate_tests
from tests.acceptance.on_engines import EVERY_RUN, NOT_ON_INCUS, engine_params
from tests.parts import ROOT, files, heavy, may_use_incus


def test_each_file_is_in_a_part_unless_all_of_it_is_for_the_soak() -> None:
    left_out = set(ROOT.rglob("test_*.py")) - {file for part in ("real", "heavy", "fast") for file in files(part)}
    marks = {
        file.name: [line for line in file.read_text().splitlines() if line.startswith("pytestmark = ")]
        for file in left_out
    }
    assert [name for name, lines in marks.items() if not any("mark.slow" in line for line in lines)] == []


def test_heavy_files_are_there_and_not_among_the_fast() -> None:
    assert {file for file in heavy() if file.exists()} - set(files("fast")) == heavy()


def test_tests_named_for_incus_are_there_and_run_on_each_engine() -> None:
    files = [file for file in (ROOT / "acceptance").glob("test_*.py") if may_use_incus(file)]
    names = {name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)}
    assert names >= EVERY_RUN
    assert EVERY_RUN.isdisjoint(NOT_ON_INCUS)


def test_acceptance_tests_run_on_incus_or_are_listed_with_a_reason() -> None:
    missing, needless = set(), set(NOT_ON_INCUS)
    for file in (ROOT / "acceptance").glob("test_*.py"):
        text = file.read_text()
        # These make clusters of their own.
        if file.name.startswith(("test_incus", "test_cluster")) or not re.search(r"LiveService|live_service", text):
            continue
        whole = re.search(r"^pytestmark = .*mark\.engines", text, re.MULTILINE)
        own = set() if whole else names_without_mark(text)
        own = {file.name} if own == names_in(text) else own
        missing |= own - NOT_ON_INCUS.keys()
        # Of a marked file, the collection refuses those that are not named and know no engine.
        needless -= names_in(text) if whole else own
    assert (missing, needless) == (set(), set())


def test_acceptance_tests_left_out_on_incus_have_names_of_their_own() -> None:
    """The list has names without files: another test of the same name would be left out unseen."""
    found = [name for file in (ROOT / "acceptance").glob("test_*.py") for name in names_in(file.read_text())]
    listed = [name for name in NOT_ON_INCUS if not name.endswith(".py")]
    assert listed
    assert {name: found.count(name) for name in listed} == dict.fromkeys(listed, 1)


def names_in(text: str) -> set[str]:
    return set(re.findall(r"^(?:async )?def (test_\w+)", text, re.MULTILINE))


def names_without_mark(text: str) -> set[str]:
    """Return the tests of a file's text that have no decorator ``engines``."""
    found = re.findall(r"^((?:@.*\n(?:[ )\]].*\n)*)*)(?:async )?def (test_\w+)", text, re.MULTILINE)
    return {name for decorators, name in found if "mark.engines" not in decorators}


@pytest.mark.parametrize("fixtures", [["service", "engine"], ["data_dir"]])
def test_marked_test_without_the_engine_fixture_is_refused(fixtures: list[str]) -> None:
    engines: list[Any] = []
    found = SimpleNamespace(
        fixturenames=fixtures,
        function=SimpleNamespace(__name__=min(EVERY_RUN)),
        definition=SimpleNamespace(get_closest_marker=lambda name: name == "engines"),
        parametrize=lambda name, params, indirect: engines.extend(params),
    )
    if "engine" in fixtures:
        pytest_generate_tests(cast("pytest.Metafunc", found))
        assert len(engines) == 2
        return
    with pytest.raises(pytest.UsageError, match=min(EVERY_RUN)):
        pytest_generate_tests(cast("pytest.Metafunc", found))


@pytest.mark.parametrize(("test", "marks"), [(min(EVERY_RUN), {"incus", "timeout"}), ("test_other", {"incus", "slow"})])
def test_limit_of_a_slow_test_on_incus_is_that_of_the_soak(test: str, marks: set[str]) -> None:
    on_incus: Any = engine_params(test)[1]
    assert {mark.name for mark in on_incus.marks} == marks
