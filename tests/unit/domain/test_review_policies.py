from typing import Any

import pytest
import yaml

from builderd.bootstrap.review import DEFAULT_POLICY
from builderd.domain.errors import ValidationFailed
from builderd.domain.review_policies import make_policy
from builderd.domain.reviews import Severity

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
