"""A standby's report is taken as a whole, or refused: nobody counts below zero, or more than a database holds."""

from __future__ import annotations

import json
from typing import Any

import pytest

from builderd.domain.previews import PreviewActivity
from builderd.domain.standby_reports import MOST, StandbyReport, decode

HOST = "app.localhost"
COUNTED = PreviewActivity(
    9, 100, 2000, 1, 2, 7, 0.5, answers_2xx=8, answers_5xx=1, within_5_ms=9, class_times=(1,) * 33
)
REPORT = StandbyReport("ab12-1", "cd-7", 3, True, {HOST: COUNTED}, {HOST: 2})


def test_report_is_read_as_it_was_written() -> None:
    assert decode(REPORT.encode()) == REPORT
    assert decode(StandbyReport("ab-0").encode()) == StandbyReport("ab-0")


def changed(**fields: Any) -> bytes:
    return json.dumps(json.loads(REPORT.encode()) | fields).encode()


def counts(place: int, value: object) -> dict[str, Any]:
    values = json.loads(REPORT.encode())["counts"][HOST]
    values[place] = value
    return {HOST: values}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"7",
        b"{}",
        b"[" * 100_000,
        b"\xff",
        changed(standby=""),
        changed(standby="a b; shutdown"),
        changed(standby=5),
        changed(standby="a" * 41),
        changed(version=None),
        changed(mark=-1),
        changed(mark=1.5),
        changed(mark=True),
        changed(mark=MOST + 1),
        changed(counts=[HOST]),
        changed(counts={HOST: []}),
        changed(counts={HOST: [1, 2, []]}),
        changed(counts={HOST: None}),
        changed(counts={"a b; del map": json.loads(REPORT.encode())["counts"][HOST]}),
        changed(counts=counts(0, -1)),
        changed(counts=counts(0, MOST + 1)),
        changed(counts=counts(0, 1e3)),
        changed(counts=counts(3, "7")),
        changed(counts=counts(6, -0.5)),
        changed(counts=counts(6, float("inf"))),
        changed(counts=counts(6, float("nan"))),
        changed(counts=counts(-1, [1])),
        changed(counts=counts(-1, [-1] * 33)),
        changed(open={HOST: -1}),
        changed(open={HOST: MOST + 1}),
        changed(open={"../x": 1}),
        changed(open=5),
    ],
)
def test_malformed_report_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decode(content)
