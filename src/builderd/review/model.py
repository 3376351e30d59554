"""Reviews: findings in a version's code before it runs, their acceptances, and the policy of limits and severities.

The review is a tripwire for obviously malicious or broken code. The security boundary is the sandbox.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

from builderd.core.errors import StageFailed, ValidationFailed
from builderd.core.ids import BuilderId

#: Rules of this family report code that cannot be checked or cannot run; their findings cannot be accepted.
SANITY = "SAN-"
#: Rules of the optional language model; they hold at most.
ADVICE = "LLM-"
#: Rules that report a scanner that failed: the next review runs it again.
BLIND = frozenset({"SAN-scanner", "LLM-failed"})
#: Most warnings of one rule and most findings in a report; the report counts the omitted ones.
MAX_OF_RULE, MAX_FINDINGS = 25, 300
#: Most open findings in a summary.
SHOWN = 5


class Severity(StrEnum):
    #: Nothing runs. An admin can accept it until a date.
    BLOCK = "block"
    #: Nothing runs until the deployer accepts it.
    HOLD = "hold"
    #: Worth a look; nothing waits for it.
    WARN = "warn"


#: Highest severity first.
ORDER = {Severity.BLOCK: 0, Severity.HOLD: 1, Severity.WARN: 2}


@dataclass(frozen=True, slots=True)
class Hit:
    """Hit of a scanner: the rule, the location, and the line with its secrets masked.

    ``line`` counts from 1, 0 for a whole file. ``mark`` names the content of the line, or of the
    file, without showing it (hex).
    """

    rule: str
    path: str
    line: int
    text: str
    mark: str
    message: str
    advice: str


@dataclass(frozen=True, slots=True)
class Finding:
    """Hit with the severity that the policy gives it.

    ``fingerprint`` stays the same when other lines change. ``demoted``: its severity would be higher
    in code that the entrypoint reaches.
    """

    fingerprint: str
    rule: str
    severity: Severity
    path: str
    line: int
    text: str
    message: str
    advice: str
    demoted: bool = False

    @property
    def acceptable(self) -> bool:
        """True if it can be accepted."""
        return self.severity is not Severity.WARN and not self.rule.startswith(SANITY)


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Acceptance of a finding of this builder by a person; ``expires_at`` None: without end."""

    builder_id: BuilderId
    fingerprint: str
    reason: str
    accepted_by: str
    accepted_at: datetime
    expires_at: datetime | None = None

    def is_valid(self, now: datetime) -> bool:
        """Return True until it expires."""
        return self.expires_at is None or self.expires_at > now


@dataclass(frozen=True, slots=True)
class Report:
    """Report on one content under one policy; both determine it.

    ``content_hash`` covers the files and the entrypoint. ``scanners`` name the tools with their versions.
    ``left_out`` counts omitted findings by rule; ``untold`` the omitted ones that block or hold, which cannot be
    accepted. ``seconds`` is the duration of the review.
    """

    content_hash: str
    policy_hash: str
    findings: tuple[Finding, ...]
    scanners: Mapping[str, str]
    files: int
    seconds: float
    reviewed_at: datetime
    left_out: Mapping[str, int]
    untold: int = 0

    @property
    def key(self) -> str:
        """Key of the report within its tenant."""
        return report_key(self.content_hash, self.policy_hash)

    @property
    def is_complete(self) -> bool:
        """True if every scanner ran: the same content then needs no new review."""
        return not any(finding.rule in BLIND for finding in self.findings)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Verdict of a report. ``open`` findings keep the version from running, highest severity first; ``untold`` counts
    omitted ones.

    ``accepted`` are by fingerprint.
    """

    open: tuple[Finding, ...]
    accepted: Mapping[str, Acceptance]
    untold: int = 0

    @property
    def passed(self) -> bool:
        return not self.open and not self.untold

    @property
    def until(self) -> datetime | None:
        """Earliest expiry of an acceptance that counts; None: never."""
        return min((one.expires_at for one in self.accepted.values() if one.expires_at), default=None)


class ReviewFailed(StageFailed):
    """The review rejected the code, and nothing was run. ``found`` has the findings."""

    code = "review_failed"
    found: tuple[Report, Verdict] | None = None


def judge(report: Report, acceptances: Iterable[Acceptance], now: datetime) -> Verdict:
    """Return the verdict: passed without unaccepted blocks and holds."""
    accepted = {one.fingerprint: one for one in acceptances if one.is_valid(now)}
    stays = [f for f in report.findings if f.severity is not Severity.WARN]
    still_open = tuple(f for f in stays if not f.acceptable or f.fingerprint not in accepted)
    counted = {f.fingerprint: accepted[f.fingerprint] for f in stays if f not in still_open}
    return Verdict(still_open, counted, report.untold)


def content_hash(bundle_hash: str, entrypoint: str) -> str:
    """Return the hash of a review's subject: the files and the entrypoint, which decides which of them run."""
    return hashlib.sha256(f"review 1\n{bundle_hash}\n{entrypoint}".encode()).hexdigest()


def report_key(content: str, policy: str) -> str:
    """Return the key of the report on this content under this policy, 64 hex characters."""
    return hashlib.sha256(f"report\n{content}\n{policy}".encode()).hexdigest()


def fingerprints(hits: Sequence[Hit]) -> Sequence[str]:
    """Return a fingerprint for each hit, 32 hex characters: of rule, path, line content, and number among equals."""
    seen: dict[tuple[str, str, str], int] = {}
    named = []
    for hit in hits:
        key = (hit.rule, hit.path, hit.mark)
        seen[key] = seen.get(key, 0) + 1
        named.append(hashlib.sha256("\n".join((*key, str(seen[key]))).encode()).hexdigest()[:32])
    return named


def limit_findings(findings: Iterable[Finding]) -> tuple[tuple[Finding, ...], Mapping[str, int], int]:
    """Return (readable number of findings, omitted ones by rule, number of omitted ones that block or hold).

    Blocks and holds come first and so are never dropped for warnings.
    """
    kept: list[Finding] = []
    warnings: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    untold = 0
    for finding in sorted(findings, key=lambda f: (ORDER[f.severity], f.path, f.line, f.rule)):
        is_warning = finding.severity is Severity.WARN
        warnings[finding.rule] += is_warning
        if len(kept) < MAX_FINDINGS and not (is_warning and warnings[finding.rule] > MAX_OF_RULE):
            kept.append(finding)
            continue
        left_out[finding.rule] += 1
        untold += not is_warning
    return tuple(kept), dict(left_out), untold


def summary(verdict: Verdict) -> str:
    """Summarize the open findings for the deployer: what blocks the version and how to fix it."""
    blocks = len([f for f in verdict.open if f.severity is Severity.BLOCK])
    holds = len(verdict.open) - blocks
    counts = [
        f"{blocks} {'blocks' if blocks == 1 else 'block'} it" if blocks else "",
        f"{holds} {'holds' if holds == 1 else 'hold'} it until accepted" if holds else "",
        f"{verdict.untold} more are not shown" if verdict.untold else "",
    ]
    counted = " and ".join(count for count in counts if count)
    lines = [_describe(finding) for finding in verdict.open[:SHOWN]]
    more = f"\n… and {len(verdict.open) - SHOWN} more." if len(verdict.open) > SHOWN else ""
    return f"The review rejected the code, so nothing was run: {counted}.\n" + "\n".join(lines) + more


def _describe(finding: Finding) -> str:
    line = f"\n    {finding.text}" if finding.text else ""
    return f"{location(finding)}: {finding.message} ({finding.rule}). {finding.advice}.{line}"


def location(finding: Finding) -> str:
    """Return the location: ``app.py:12``, or the file alone."""
    return f"{finding.path or 'the commands'}:{finding.line}" if finding.line else finding.path or "the code"


OFF = "off"
MB = 1_000_000


@dataclass(frozen=True, slots=True)
class ReviewLimits:
    """Limits of the review of one version; sizes in bytes. Exceeding one of the first three holds, any other blocks.

    ``cpu_seconds`` and ``wall_seconds`` are those of a small bundle; ``for_size`` has those of a larger one.
    """

    files: int = 2_000
    file_bytes: int = 1_000_000
    total_bytes: int = 20_000_000
    wall_seconds: float = 60
    cpu_seconds: int = 10
    memory_bytes: int = 1_000_000_000

    def for_size(self, read_bytes: int) -> ReviewLimits:
        """Return the limits of a review that reads so many bytes: a tenth more time for each whole MB.

        What the limits of size allow can so be read within those of time: 20 MB within three times that of a small
        bundle. Bundles of less than 1 MB have the same limits, so that a scanner can be prepared for them.
        """
        factor = 1 + read_bytes // MB / 10
        return replace(self, cpu_seconds=math.ceil(self.cpu_seconds * factor), wall_seconds=self.wall_seconds * factor)


@dataclass(frozen=True)
class Policy:
    """Review policy.

    ``rules`` map patterns of rule names to a severity, None leaves the rule out; the last that matches counts.

    ``demoted`` are patterns of paths (``*`` also goes across ``/``) whose findings only warn, unless the entrypoint
    or a hook reaches the file.
    """

    limits: ReviewLimits
    rules: tuple[tuple[str, Severity | None], ...]
    demoted: tuple[str, ...]

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the policy, 64 hex characters."""
        rules = [(pattern, severity and severity.value) for pattern, severity in self.rules]
        text = json.dumps({"limits": asdict(self.limits), "rules": rules, "demoted": self.demoted}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def severity(self, rule: str) -> Severity | None:
        """Return the severity of a rule; None: off. A rule that no pattern matches warns.

        No policy can lower the ``SAN-`` rules, or let the language model's rules do more than hold.
        """
        found = [severity for pattern, severity in self.rules if fnmatchcase(rule, pattern)]
        severity = found[-1] if found else Severity.WARN
        if rule.startswith(SANITY):
            return Severity.BLOCK
        if rule.startswith(ADVICE) and (severity is Severity.BLOCK or rule in BLIND):
            return Severity.HOLD
        return severity

    def is_demoted(self, path: str) -> bool:
        """Return True for a file with reduced severity: a test, a document or the like."""
        return any(fnmatchcase(path.lower(), pattern.lower()) for pattern in self.demoted)


def make_policy(document: Any) -> Policy:
    """Make the policy of a parsed file. Raises ``ValidationFailed`` with every error."""
    if not isinstance(document, Mapping):
        raise ValidationFailed({"review policy": ["must be a mapping with limits, rules and demoted"]})
    errors = dict(_errors(document))
    if errors:
        raise ValidationFailed({f"review policy: {where}": [why] for where, why in errors.items()})
    weights: dict[Any, Severity | None] = {OFF: None, False: None, **{s.value: s for s in Severity}}
    rules = tuple((str(name), weights[word]) for name, word in document.get("rules", {}).items())
    return Policy(ReviewLimits(**document.get("limits", {})), rules, tuple(document.get("demoted", ())))


def _errors(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    known = {"limits": Mapping, "rules": Mapping, "demoted": list}
    for name, value in document.items():
        if name not in known:
            yield str(name), f"is not known here: {', '.join(known)} are"
        elif not isinstance(value, known[name]):
            yield name, "must be a list" if known[name] is list else "must be a mapping"
    if isinstance(limits := document.get("limits"), Mapping):
        yield from _limit_errors(limits)
    if isinstance(rules := document.get("rules"), Mapping):
        yield from _rule_errors(rules)
    if isinstance(places := document.get("demoted"), list) and not all(isinstance(one, str) for one in places):
        yield "demoted", "must be a list of patterns of paths"


def _limit_errors(limits: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    names = {field.name for field in fields(ReviewLimits)}
    for name, value in limits.items():
        if name not in names:
            yield f"limits.{name}", f"is not known here: {', '.join(sorted(names))} are"
        elif isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            yield f"limits.{name}", "must be a number greater than 0"


def _rule_errors(rules: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    # YAML reads an unquoted off as false.
    words = (*(severity.value for severity in Severity), OFF, False)
    for name, word in rules.items():
        if word not in words:
            yield f"rules.{name}", "must be block, hold, warn or off"
        elif str(name).startswith(SANITY) and word != Severity.BLOCK.value:
            yield f"rules.{name}", "must be block: code that cannot be checked must not run"
        elif str(name).startswith(ADVICE) and word == Severity.BLOCK.value:
            yield f"rules.{name}", "must be hold, warn or off: a language model may do no more than hold"
