"""Reviews: what the gate found in a version's code before any of it ran, and what a person accepted of it.

The gate is a tripwire: it catches what is plainly meant ill or plainly broken. The sandbox is the boundary.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from builderd.domain.ids import BuilderId

#: Rules of this family say that the code could not be judged or cannot run; nobody can accept them.
SANITY = "SAN-"
#: Rules of this family are what the optional language model says; they hold at most.
ADVICE = "LLM-"
#: Rules that say that something could not look: the next review looks again.
BLIND = frozenset({"SAN-scanner", "LLM-failed"})
#: So many warnings of one rule are told, and so many findings in all; the number left out is told too.
MAX_OF_RULE, MAX_FINDINGS = 25, 300
#: So many of those that stand in the way are in a summary.
SHOWN = 5


class Severity(StrEnum):
    #: Nothing runs. An admin can accept it until a date.
    BLOCK = "block"
    #: Nothing runs until the deployer accepts it.
    HOLD = "hold"
    #: Worth a look; nothing waits for it.
    WARN = "warn"


#: The gravest first.
ORDER = {Severity.BLOCK: 0, Severity.HOLD: 1, Severity.WARN: 2}


@dataclass(frozen=True, slots=True)
class Hit:
    """What a scanner saw: the rule, where, and the line with its secrets masked.

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
    """A hit as the policy judges it.

    ``fingerprint`` stays the same when other lines change. ``demoted`` tells that it would weigh more in code that
    the entrypoint reaches.
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
        """Whether anybody may accept it."""
        return self.severity is not Severity.WARN and not self.rule.startswith(SANITY)


@dataclass(frozen=True, slots=True)
class Acceptance:
    """A person took a finding of this builder on themselves; ``expires_at`` None: for good."""

    builder_id: BuilderId
    fingerprint: str
    reason: str
    accepted_by: str
    accepted_at: datetime
    expires_at: datetime | None = None

    def holds(self, now: datetime) -> bool:
        """Whether it still counts."""
        return self.expires_at is None or self.expires_at > now


@dataclass(frozen=True, slots=True)
class Report:
    """What a review of one content under one policy found; the same for both, whenever it is made.

    ``content_hash`` covers the files and the entrypoint. ``scanners`` name the tools with their versions.
    ``left_out`` counts findings that are not told, by rule; ``untold`` those of them that block or hold, which nobody
    can accept. ``seconds`` is what it took when it was made.
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
        """Names the report among all of a tenant."""
        return report_key(self.content_hash, self.policy_hash)

    @property
    def whole(self) -> bool:
        """Whether all scanners have looked: then the same content need not be looked at again."""
        return not any(finding.rule in BLIND for finding in self.findings)


@dataclass(frozen=True, slots=True)
class Verdict:
    """``open`` are the findings that keep the version from running, the gravest first; ``untold`` counts more of them.

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
        """When the first of what was accepted is not any more; None: never."""
        return min((one.expires_at for one in self.accepted.values() if one.expires_at), default=None)


def judge(report: Report, acceptances: Iterable[Acceptance], now: datetime) -> Verdict:
    """Passed is what has no unaccepted block or hold."""
    accepted = {one.fingerprint: one for one in acceptances if one.holds(now)}
    stays = [f for f in report.findings if f.severity is not Severity.WARN]
    still_open = tuple(f for f in stays if not f.acceptable or f.fingerprint not in accepted)
    counted = {f.fingerprint: accepted[f.fingerprint] for f in stays if f not in still_open}
    return Verdict(still_open, counted, report.untold)


def content_hash(bundle_hash: str, entrypoint: str) -> str:
    """Names what a review judges: the files, and the command that decides which of them run."""
    return hashlib.sha256(f"review 1\n{bundle_hash}\n{entrypoint}".encode()).hexdigest()


def report_key(content: str, policy: str) -> str:
    """Of the report on this content under this policy. 64 hex characters."""
    return hashlib.sha256(f"report\n{content}\n{policy}".encode()).hexdigest()


def fingerprints(hits: Sequence[Hit]) -> Sequence[str]:
    """For each hit: rule, path, the line's content, and which of its like it is. 32 hex characters."""
    seen: dict[tuple[str, str, str], int] = {}
    named = []
    for hit in hits:
        key = (hit.rule, hit.path, hit.mark)
        seen[key] = seen.get(key, 0) + 1
        named.append(hashlib.sha256("\n".join((*key, str(seen[key]))).encode()).hexdigest()[:32])
    return named


def ordered(findings: Iterable[Finding]) -> Sequence[Finding]:
    """The gravest first, then by place."""
    return sorted(findings, key=lambda f: (ORDER[f.severity], f.path, f.line, f.rule))


class LimitedFindings(NamedTuple):
    """``left_out`` counts what is not told, by rule; ``untold`` those of it that block or hold."""

    kept: tuple[Finding, ...]
    left_out: Mapping[str, int]
    untold: int


def limit_findings(findings: Sequence[Finding]) -> LimitedFindings:
    """As many as a person reads. Never a block or a hold for the sake of a warning, since the gravest come first."""
    kept: list[Finding] = []
    warnings: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    untold = 0
    for finding in ordered(findings):
        is_warning = finding.severity is Severity.WARN
        warnings[finding.rule] += is_warning
        if len(kept) < MAX_FINDINGS and not (is_warning and warnings[finding.rule] > MAX_OF_RULE):
            kept.append(finding)
            continue
        left_out[finding.rule] += 1
        untold += not is_warning
    return LimitedFindings(tuple(kept), dict(left_out), untold)


def summary(verdict: Verdict) -> str:
    """One paragraph for whoever deployed it: what stands in the way, and what to do."""
    blocks = len([f for f in verdict.open if f.severity is Severity.BLOCK])
    holds = len(verdict.open) - blocks
    counts = [
        f"{blocks} {'blocks' if blocks == 1 else 'block'} it" if blocks else "",
        f"{holds} {'holds' if holds == 1 else 'hold'} it until accepted" if holds else "",
        f"{verdict.untold} more are not told" if verdict.untold else "",
    ]
    told = " and ".join(count for count in counts if count)
    lines = [_told(finding) for finding in verdict.open[:SHOWN]]
    more = f"\n… and {len(verdict.open) - SHOWN} more." if len(verdict.open) > SHOWN else ""
    return f"The review found what must not run, so nothing was run: {told}.\n" + "\n".join(lines) + more


def _told(finding: Finding) -> str:
    line = f"\n    {finding.text}" if finding.text else ""
    return f"{location(finding)}: {finding.message} ({finding.rule}). {finding.advice}.{line}"


def location(finding: Finding) -> str:
    """Where it is: ``app.py:12``, or the file alone."""
    return f"{finding.path}:{finding.line}" if finding.line else finding.path or "the whole"


def demote(finding: Finding) -> Finding:
    """The same as a warning."""
    return replace(finding, severity=Severity.WARN, demoted=True)
