"""Tables for spreadsheets, which run no formula of a tenant's."""

from __future__ import annotations

import csv
import io
from decimal import Decimal

import pytest

from builderd.domain.prices import csv_text


def test_numbers_and_text_are_cells() -> None:
    text = csv_text([("name", "cost"), ('a "b", c', Decimal("1.20")), ("two\nlines", -3)])
    assert text.splitlines()[0] == "name,cost"
    assert list(csv.reader(io.StringIO(text)))[1:] == [['a "b", c', "1.20"], ["two\nlines", "-3"]]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1", "\n=1", "=cmd|' /C calc'!A0"])
def test_text_is_no_formula(text: str) -> None:
    ((cell,),) = csv.reader(io.StringIO(csv_text([(text,)]), newline=""))
    assert cell == f"'{text}"
