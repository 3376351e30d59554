"""Names, and when what was wanted has come about."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.unit.domain.samples import make_builder

from builderd.domain.builders import NAME, Desired, Status, name_error


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
