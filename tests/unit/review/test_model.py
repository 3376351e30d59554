from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import yaml

from builderd.bootstrap.review import DEFAULT_POLICY
from builderd.core.errors import ValidationFailed
from builderd.core.ids import BuilderId
from builderd.review.model import (
    MAX_FINDINGS,
    MAX_OF_RULE,
    Acceptance,
    Finding,
    Hit,
    Report,
    Severity,
    content_hash,
    fingerprints,
    judge,
    limit_findings,
    make_policy,
    summary,
)

NOW = datetime(2026, 1, 31, tzinfo=UTC)
HELD = Finding("h", "RSK-x", Severity.HOLD, "app.py", 3, "line", "it does", "Do not")
BLOCKED = replace(HELD, fingerprint="b", rule="MAL-x", severity=Severity.BLOCK)
INSANE = replace(HELD, fingerprint="s", rule="SAN-x", severity=Severity.BLOCK)
WARNED = replace(HELD, fingerprint="w", rule="RUF-x", severity=Severity.WARN)


def report(*findings: Finding) -> Report:
    return Report("c", "p", findings, {}, 1, 0.1, NOW, {})


def accept(finding: Finding, until: datetime | None = None) -> Acceptance:
    return Acceptance(BuilderId("b"), finding.fingerprint, "why", "who", NOW, until)


@pytest.mark.parametrize(
    ("findings", "accepted", "passed"),
    [
        ((), (), True),
        ((WARNED,), (), True),
        ((HELD,), (), False),
        ((HELD,), (accept(HELD),), True),
        ((HELD,), (accept(BLOCKED),), False),
        ((BLOCKED,), (accept(BLOCKED, NOW + timedelta(1)),), True),
        ((BLOCKED,), (accept(BLOCKED, NOW),), False),
        ((INSANE,), (accept(INSANE),), False),
        ((HELD, BLOCKED), (accept(HELD),), False),
    ],
)
def test_review_passes_without_an_open_block_or_hold(
    findings: tuple[Finding, ...], accepted: tuple[Acceptance, ...], passed: bool
) -> None:
    assert judge(report(*findings), accepted, NOW).passed is passed


def test_another_entrypoint_is_another_content() -> None:
    assert len({content_hash("a", "x"), content_hash("a", "y"), content_hash("b", "x")}) == 3


def test_fingerprint_survives_other_lines_and_distinguishes_equal_lines() -> None:
    hit = Hit("R", "a.py", 3, "text", "mark", "m", "a")
    first, second = fingerprints([hit, hit])
    assert first != second
    assert fingerprints([replace(hit, line=9, text="shown otherwise", message="n")]) == [first]
    others = [replace(hit, rule="S"), replace(hit, path="b.py"), replace(hit, mark="other")]
    assert first not in fingerprints(others)


def test_no_warning_crowds_out_what_blocks() -> None:
    many = [replace(WARNED, rule=f"R{n // MAX_OF_RULE}", line=n) for n in range(MAX_FINDINGS * 2)]
    kept, left_out, untold = limit_findings([*many, BLOCKED])
    assert kept[0] == BLOCKED
    assert (len(kept), untold) == (MAX_FINDINGS, 0)
    assert sum(left_out.values()) == len(many) + 1 - MAX_FINDINGS


def test_many_warnings_of_one_rule_are_counted() -> None:
    kept, left_out, untold = limit_findings([replace(WARNED, line=n) for n in range(MAX_OF_RULE + 2)])
    assert (len(kept), left_out, untold) == (MAX_OF_RULE, {"RUF-x": 2}, 0)


def test_accepting_all_shown_findings_does_not_pass_hidden_ones() -> None:
    """Users who accept all findings that they see have not accepted the rest."""
    many = [replace(HELD, line=n, fingerprint=str(n)) for n in range(MAX_FINDINGS + 2)]
    kept, left_out, untold = limit_findings(many)
    assert (len(kept), left_out, untold) == (MAX_FINDINGS, {"RSK-x": 2}, 2)
    verdict = judge(replace(report(*kept), untold=untold), [accept(one) for one in many], NOW)
    assert not verdict.passed
    assert "2 more are not shown" in summary(verdict)


def test_a_verdict_holds_until_the_first_acceptance_ends() -> None:
    soon, later = NOW + timedelta(1), NOW + timedelta(2)
    accepted = [accept(HELD, later), accept(BLOCKED, soon)]
    assert judge(report(HELD, BLOCKED), accepted, NOW).until == soon
    assert judge(report(HELD), [accept(HELD)], NOW).until is None


def test_a_report_is_whole_unless_something_could_not_look() -> None:
    assert report(HELD, INSANE).is_complete
    for rule in ("SAN-scanner", "LLM-failed"):
        assert not report(replace(HELD, rule=rule)).is_complete


def test_the_summary_says_where_why_and_what_to_do() -> None:
    text = summary(judge(report(BLOCKED, HELD), (), NOW))
    assert "1 blocks it and 1 holds it until accepted" in text
    assert "app.py:3: it does (MAL-x). Do not.\n    line" in text


DEFAULT = yaml.safe_load(DEFAULT_POLICY.read_text())


@pytest.mark.parametrize(
    ("rule", "severity"),
    [
        ("SAN-syntax", Severity.BLOCK),
        ("SEC-stripe-access-token", Severity.BLOCK),
        ("SEC-jwt", Severity.WARN),
        ("GEN-generic-api-key", Severity.WARN),
        ("MAL-miner", Severity.BLOCK),
        ("RSK-size", Severity.HOLD),
        ("YAL-process-memory", None),
        ("never-heard-of", Severity.WARN),
    ],
)
def test_the_default_weighs(rule: str, severity: Severity | None) -> None:
    assert make_policy(DEFAULT).severity(rule) is severity


@pytest.mark.parametrize(
    ("path", "less"),
    [
        ("README.md", True),
        ("docs/guide/index.md", True),
        ("tests/unit/test_a.py", True),
        ("src/tests/x.py", True),
        (".env.example", True),
        ("Tests/a.py", True),
        ("app.py", False),
        ("contest.py", False),
        ("latest/app.py", False),
        (".env", False),
    ],
)
def test_the_default_lets_tests_and_documents_weigh_less(path: str, less: bool) -> None:
    assert make_policy(DEFAULT).is_demoted(path) is less


def test_the_last_pattern_counts() -> None:
    policy = make_policy({"rules": {"A-*": "block", "A-b": False, "A-bc": "hold"}})
    assert [policy.severity(rule) for rule in ("A-a", "A-b", "A-bc")] == [Severity.BLOCK, None, Severity.HOLD]


def test_time_of_a_review_follows_from_the_size_that_is_allowed() -> None:
    limits = make_policy(DEFAULT).limits
    assert limits.for_size(999_999) == limits, "a scanner that is prepared for small bundles fits"
    whole = limits.for_size(limits.total_bytes)
    assert (whole.cpu_seconds, whole.wall_seconds) == (30, 180)
    assert (whole.files, whole.total_bytes, whole.memory_bytes) == (
        limits.files,
        limits.total_bytes,
        limits.memory_bytes,
    )


def test_no_pattern_lets_through_what_could_not_be_judged_or_has_a_model_do_more_than_hold() -> None:
    for word, model in (("off", None), ("warn", Severity.WARN), ("block", Severity.HOLD)):
        policy = make_policy({"rules": {"*": word}})
        assert policy.severity("SAN-syntax") is Severity.BLOCK
        assert policy.severity("LLM-failed") is Severity.HOLD
        assert policy.severity("LLM-risk") is model


def test_another_policy_has_another_hash() -> None:
    changed = {**DEFAULT, "limits": {**DEFAULT["limits"], "files": 7}}
    reordered = {"rules": dict(reversed(list(DEFAULT["rules"].items())))}
    hashes = {make_policy(one).hash for one in (DEFAULT, changed, {}, reordered)}
    assert len(hashes) == 4
    assert make_policy(DEFAULT).hash == make_policy(yaml.safe_load(DEFAULT_POLICY.read_text())).hash


@pytest.mark.parametrize(
    ("document", "where"),
    [
        ([], "review policy"),
        ({"rule": {}}, "review policy: rule"),
        ({"rules": {"A": "stop"}}, "review policy: rules.A"),
        ({"rules": {"SAN-syntax": "warn"}}, "review policy: rules.SAN-syntax"),
        ({"rules": {"SAN-*": "off"}}, "review policy: rules.SAN-*"),
        ({"rules": {"LLM-*": "block"}}, "review policy: rules.LLM-*"),
        ({"limits": {"files": 0}}, "review policy: limits.files"),
        ({"limits": {"files": True}}, "review policy: limits.files"),
        ({"limits": {"fils": 1}}, "review policy: limits.fils"),
        ({"demoted": "x"}, "review policy: demoted"),
        ({"demoted": [1]}, "review policy: demoted"),
    ],
)
def test_a_wrong_policy_is_refused_and_says_where(document: Any, where: str) -> None:
    with pytest.raises(ValidationFailed) as caught:
        make_policy(document)
    assert where in caught.value.errors
