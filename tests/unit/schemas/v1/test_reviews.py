import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from pydantic import ValidationError

from builderd.domain.ids import BuilderId
from builderd.domain.reviews import Acceptance, Finding, Report, Severity, judge
from builderd.schemas.v1.reviews import NewAcceptance, review_of, sarif_of

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


def test_the_schema_is_no_blank_cheque() -> None:
    document = sarif_of(review_of(REPORT, judge(REPORT, (), NOW)), "0.1.0")
    document["runs"][0]["results"][0]["level"] = "bad"
    assert not schema().is_valid(document)


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


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("fingerprint", "x"),
        ("fingerprint", "A" * 32),
        ("reason", " "),
        ("reason", ""),
        ("expires", "soon"),
        ("more", 1),
    ],
)
def test_an_acceptance_names_a_finding_and_a_reason(field: str, value: object) -> None:
    with pytest.raises(ValidationError):
        NewAcceptance.model_validate({"fingerprint": "a" * 32, "reason": "meant", field: value})


def test_an_acceptance_may_expire() -> None:
    body = {"fingerprint": "a" * 32, "reason": "meant", "expires": "2026-03-01T00:00:00Z"}
    assert NewAcceptance.model_validate(body).expires == datetime(2026, 3, 1, tzinfo=UTC)
