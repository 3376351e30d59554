"""The envelope of every answer."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

from builderd.domain.sandboxes import LogStream
from builderd.schemas.v1.monitoring import LogLine
from builderd.schemas.v1.shape import Failure, Success, Time, View


class At(View):
    time: Time


def test_times_are_in_utc_to_the_second() -> None:
    berlin = datetime(2026, 1, 31, 13, 0, 0, 999, tzinfo=timezone(timedelta(hours=1)))
    assert At(time=berlin).model_dump(mode="json") == {"time": "2026-01-31T12:00:00Z"}


def test_years_have_four_digits() -> None:
    assert At(time=datetime(1, 1, 1, tzinfo=UTC)).model_dump(mode="json") == {"time": "0001-01-01T00:00:00Z"}


def test_times_of_log_lines_are_exact() -> None:
    line = LogLine(time=datetime(2026, 1, 31, tzinfo=UTC), stream=LogStream.STDOUT, version=1, text="")
    assert line.model_dump(mode="json")["time"] == "2026-01-31T00:00:00.000000Z"


def test_a_success_has_its_three_keys() -> None:
    assert Success[int](message="one.", data=1).model_dump() == {"success": True, "message": "one.", "data": 1}


def test_a_failure_has_errors_and_data_only_where_there_are_some() -> None:
    assert Failure(code="a", message="b").model_dump() == {"success": False, "code": "a", "message": "b"}
    full = Failure(code="a", message="b", errors={"x": ["y"]}, data={"uuid": "z"}).model_dump()
    assert (full["errors"], full["data"]) == ({"x": ["y"]}, {"uuid": "z"})
