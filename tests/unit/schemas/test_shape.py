"""Validation of requests: exact types, unknown fields named, all errors reported at once."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from pydantic import Field, ValidationError

from builderd.core.ids import BuilderId
from builderd.review.model import Acceptance, Finding, Report, Severity, judge
from builderd.sandboxes.model import LogStream
from builderd.schemas.monitoring import LogLine
from builderd.schemas.reviews import review_of, sarif_of
from builderd.schemas.shape import (
    MAX_FIELD_ERRORS,
    MAX_PATH_CHARACTERS,
    Failure,
    JsonInt,
    Parameters,
    Shape,
    Time,
    View,
    field_errors,
)


class Inner(Shape):
    cpu: float = 1


class Outer(Shape):
    name: str
    port: JsonInt = Field(default=1, ge=1)
    flag: bool = False
    inner: Inner = Field(default_factory=Inner)
    listed: list[str] = Field(default_factory=list)


class Query(Parameters):
    page: int = 1
    since: str | None = Field(default=None, alias="from")


def faults(shape: type[Shape] | type[Parameters], value: object) -> dict[str, list[str]]:
    with pytest.raises(ValidationError) as caught:
        shape.model_validate(value)
    return field_errors(caught.value)


def test_all_errors_are_reported_by_dotted_path() -> None:
    told = faults(Outer, {"port": 0, "flag": 1, "inner": {"cpu": "1"}, "listed": ["a", 2]})
    assert told == {
        "name": ["is required"],
        "port": ["must be 1 or more"],
        "flag": ["must be true or false"],
        "inner.cpu": ["must be a number"],
        "listed.1": ["must be text"],
    }


def test_a_whole_number_may_be_written_with_a_point() -> None:
    assert Outer.model_validate({"name": "a", "port": 80.0}).port == 80


def test_unknown_field_is_reported_with_the_nearest_name() -> None:
    told = faults(Outer, {"nmae": "a", "inner": {"cpus": 1}, "zzzzzz": 1})
    assert told == {
        "nmae": ["is not known here: did you mean name?"],
        "zzzzzz": ["is not known here: leave it out"],
        "name": ["is required"],
        "inner.cpus": ["is not known here: did you mean cpu?"],
    }


def test_a_query_is_text_of_which_types_are_made() -> None:
    assert Query.model_validate({"page": "2", "from": "x"}) == Query.model_validate({"page": 2, "from": "x"})
    assert faults(Query, {"pgae": "1", "form": "x"}) == {
        "pgae": ["is not known here: did you mean page?"],
        "form": ["is not known here: did you mean from?"],
    }


def test_number_of_reported_errors_is_limited() -> None:
    assert len(faults(Outer, {"name": "a", "listed": [1] * 5000})) == MAX_FIELD_ERRORS
    assert len(faults(Outer, {"name": "a", **{f"x{n}": 1 for n in range(5000)}})) == MAX_FIELD_ERRORS


def test_a_long_unknown_name_is_cut() -> None:
    (path,) = faults(Outer, {"name": "a", "x" * 1_000_000: 1})
    assert len(path) == MAX_PATH_CHARACTERS


def test_a_view_passes_over_what_it_does_not_know() -> None:
    class Shown(View):
        name: str

    assert Shown.model_validate({"name": "a", "later": 1}).name == "a"


class At(View):
    time: Time


def test_times_are_in_utc_to_the_second() -> None:
    berlin = datetime(2026, 1, 31, 13, 0, 0, 999, tzinfo=timezone(timedelta(hours=1)))
    assert At(time=berlin).model_dump(mode="json") == {"time": "2026-01-31T12:00:00Z"}


def test_times_of_log_lines_are_exact() -> None:
    line = LogLine(time=datetime(2026, 1, 31, tzinfo=UTC), stream=LogStream.STDOUT, version=1, text="")
    assert line.model_dump(mode="json")["time"] == "2026-01-31T00:00:00.000000Z"


def test_a_failure_has_errors_and_data_only_where_there_are_some() -> None:
    assert Failure(code="a", message="b").model_dump() == {"success": False, "code": "a", "message": "b"}
    full = Failure(code="a", message="b", errors={"x": ["y"]}, data={"uuid": "z"}).model_dump()
    assert (full["errors"], full["data"]) == ({"x": ["y"]}, {"uuid": "z"})


NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
HELD = Finding("a" * 32, "RSK-metadata", Severity.HOLD, "app.py", 3, "ask()", "it asks", "Do not")
BLOCKED = Finding("b" * 32, "SAN-entrypoint", Severity.BLOCK, "", 0, "", "it is missing", "Name another")
WARNED = Finding("c" * 32, "RUF-S602", Severity.WARN, "a folder/ä%.py", 1, "run()", "it runs", "Look", demoted=True)
REPORT = Report("1" * 64, "2" * 64, (BLOCKED, HELD, WARNED), {"ruff": "1"}, 3, 0.02, NOW, {"RUF-S602": 4})
ACCEPTED = Acceptance(BuilderId("b"), HELD.fingerprint, "meant", "token a", NOW)


def schema() -> Any:
    document = json.loads((Path(__file__).parent / "sarif/sarif-2.1.0-rtm.5.json").read_text())
    for part in ("run", "toolComponent"):
        # A slip of the schema: this is no regular expression, so nothing could be checked by it.
        del document["definitions"][part]["properties"]["language"]["pattern"]
    return jsonschema_rs.validator_for(document)


@pytest.mark.parametrize("report", [REPORT, replace(REPORT, findings=())])
def test_sarif_obeys_its_schema(report: Report) -> None:
    document = sarif_of(review_of(report, judge(report, [ACCEPTED], NOW)), "0.1.0")
    schema().validate(document)
    assert len(document["runs"]) == 1


def test_sarif_names_findings_by_their_fingerprints() -> None:
    results = sarif_of(review_of(REPORT, judge(REPORT, [ACCEPTED], NOW)), "0.1.0")["runs"][0]["results"]
    assert [r["partialFingerprints"]["builderd/v1"] for r in results] == ["b" * 32, "a" * 32, "c" * 32]
    assert [r["level"] for r in results] == ["error", "error", "warning"]
    assert [len(r.get("suppressions", ())) for r in results] == [0, 1, 0]
    assert results[2]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "a%20folder/%C3%A4%25.py"


def test_report_shows_acceptances_and_their_actors() -> None:
    shown = review_of(REPORT, judge(REPORT, [ACCEPTED], NOW), 2)
    assert not shown.passed
    accepted = [finding.accepted for finding in shown.findings]
    assert accepted[1] is not None
    assert accepted[1].model_dump(mode="json") == {
        "reason": "meant",
        "accepted_by": "token a",
        "accepted_at": "2026-01-31T12:00:00Z",
        "expires_at": None,
    }
    assert [finding.acceptable for finding in shown.findings] == [False, True, False]
