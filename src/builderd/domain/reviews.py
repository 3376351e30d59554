"""Reviews: what the gate found in a version's code before any of it ran, and what a person accepted of it.

The gate is a tripwire: it catches what is plainly meant ill or plainly broken. The sandbox is the boundary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from builderd.domain.ids import BuilderId

#: Rules of this family say that the code could not be judged or cannot run; nobody can accept them.
SANITY = "SAN-"
#: So many findings of one rule are told, and so many in all; the number left out is told too.
MAX_OF_RULE, MAX_FINDINGS = 25, 300


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

    ``line`` counts from 1, 0 for a whole file. ``mark`` names the line's content without showing it (hex).
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
    ``left_out`` counts findings that are not told, by rule. ``seconds`` is what it took when it was made.
    """

    content_hash: str
    policy_hash: str
    findings: tuple[Finding, ...]
    scanners: Mapping[str, str]
    files: int
    seconds: float
    reviewed_at: datetime
    left_out: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Verdict:
    """``open`` are the findings that keep the version from running, the gravest first."""

    open: tuple[Finding, ...]
    accepted: Mapping[str, Acceptance]

    @property
    def passed(self) -> bool:
        return not self.open


def judge(report: Report, acceptances: Iterable[Acceptance], now: datetime) -> Verdict:
    """Passed is what has no unaccepted block or hold."""
    accepted = {one.fingerprint: one for one in acceptances if one.holds(now)}
    stays = [f for f in report.findings if f.severity is not Severity.WARN]
    still_open = tuple(f for f in stays if not f.acceptable or f.fingerprint not in accepted)
    counted = {f.fingerprint: accepted[f.fingerprint] for f in stays if f not in still_open}
    return Verdict(still_open, counted)


def content_hash(bundle_hash: str, entrypoint: str) -> str:
    """Names what a review judges: the files, and the command that decides which of them run."""
    return hashlib.sha256(f"review 1\n{bundle_hash}\n{entrypoint}".encode()).hexdigest()


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


def cut(findings: Sequence[Finding]) -> tuple[tuple[Finding, ...], Mapping[str, int]]:
    """As many as a person reads, and how many of each rule were left out.

    Never a block or a hold for the sake of a warning, since the gravest come first.
    """
    kept: list[Finding] = []
    of_rule: dict[tuple[str, Severity], int] = {}
    left_out: dict[str, int] = {}
    for finding in ordered(findings):
        key = (finding.rule, finding.severity)
        of_rule[key] = of_rule.get(key, 0) + 1
        if of_rule[key] > MAX_OF_RULE or len(kept) >= MAX_FINDINGS:
            left_out[finding.rule] = left_out.get(finding.rule, 0) + 1
        else:
            kept.append(finding)
    return tuple(kept), left_out


def summary(verdict: Verdict) -> str:
    """One paragraph for whoever deployed it: what stands in the way, and what to do."""
    blocks = [f for f in verdict.open if f.severity is Severity.BLOCK]
    holds = len(verdict.open) - len(blocks)
    counts = [f"{len(blocks)} block it" if blocks else "", f"{holds} hold it until accepted" if holds else ""]
    told = " and ".join(count for count in counts if count)
    lines = [f"{place(f)}: {f.message} ({f.rule}). {f.advice}" for f in verdict.open[:5]]
    more = f"\n… and {len(verdict.open) - 5} more." if len(verdict.open) > 5 else ""
    return f"The review found what must not run; nothing was run: {told}.\n" + "\n".join(lines) + more


def place(finding: Finding) -> str:
    """Where it is: ``app.py:12``, or the file alone."""
    return f"{finding.path}:{finding.line}" if finding.line else finding.path or "the whole"


def demote(finding: Finding) -> Finding:
    """The same as a warning."""
    return replace(finding, severity=Severity.WARN, demoted=True)
