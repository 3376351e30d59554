"""The confusion table: what the review makes of code that is sound and of code that is meant ill."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.gates.apps import App, find_apps
from benchmarks.gates.packages import Package, members

from builderd.code.model import Bundle
from builderd.review.model import Finding, Policy, Severity
from builderd.review.scanners.tripwire.scanner import TripwireScanner
from builderd.review.service import Gate

REASONS = Path(__file__).with_name("reasons.txt")
BLOCKED, HELD, PASSED = "blocked", "held", "passed"


@dataclass(frozen=True, slots=True)
class Row:
    """One app: what came of it, in how many seconds, and what stopped it."""

    title: str
    package: str
    outcome: str
    files: int
    seconds: float
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a benign app is rightly stopped by this rule; a file that the reason does not name needs one of its own."""

    rule: str
    package: str
    path: str
    why: str


@dataclass(frozen=True, slots=True)
class Reviewer:
    scanner: TripwireScanner
    policy: Policy

    async def judge(self, title: str, package: str, bundle: Bundle, entrypoint: str) -> Row:
        report = await Gate(self.scanner, self.policy).review(bundle, entrypoint, datetime.now(UTC))
        stopping = tuple(finding for finding in report.findings if finding.severity is not Severity.WARN)
        blocks = any(finding.severity is Severity.BLOCK for finding in stopping)
        outcome = BLOCKED if blocks else HELD if stopping else PASSED
        return Row(title, package, outcome, len(bundle.files), report.seconds, stopping)


async def judge_packages(reviewer: Reviewer, archives: Mapping[Package, Path]) -> list[Row]:
    """One after the other, as the service would at its quietest."""
    rows = []
    for package, archive in archives.items():
        apps: Sequence[App] = find_apps(package, members(archive))
        if not apps:
            raise SystemExit(f"{package.title} holds no app: take it out of packages.txt")
        rows += [await reviewer.judge(app.title, package.name, app.bundle, app.entrypoint) for app in apps]
    return rows


def read_reasons(path: Path = REASONS) -> Sequence[Reason]:
    """``<rule> <package> <path or -> <why>`` on each line that is no comment."""
    lines = [line.split(None, 3) for line in path.read_text().splitlines() if line.strip() and line[0] != "#"]
    return [Reason(*line) for line in lines]


def unexplained(rows: Iterable[Row], reasons: Sequence[Reason]) -> list[str]:
    """Blocks of benign apps that nobody has given a reason for."""
    known = {(reason.rule, reason.package, reason.path) for reason in reasons}
    return [
        f"{row.title}: {finding.rule} {finding.path}:{finding.line} {finding.message}"
        for row in rows
        for finding in row.findings
        if finding.severity is Severity.BLOCK and (finding.rule, row.package, finding.path or "-") not in known
    ]


def line_of(name: str, rows: Sequence[Row]) -> str:
    """A line of the table."""
    counts = [sum(row.outcome == outcome for row in rows) for outcome in (BLOCKED, HELD, PASSED)]
    seconds = [row.seconds for row in rows]
    figures = " | ".join(str(count) for count in counts)
    return f"| {name} | {len(rows)} | {figures} | {statistics.median(seconds):.2f} | {max(seconds):.1f} |"


HEAD = "| code | apps | blocked | held | passed | s, median | s, most |\n|---|---|---|---|---|---|---|"


def details(rows: Iterable[Row]) -> Iterable[str]:
    """What stopped each, for whoever looks at the figures."""
    for row in rows:
        if row.outcome != PASSED:
            yield f"{row.outcome:8} {row.title} ({row.files} files, {row.seconds:.1f} s)"
            for finding in row.findings[:5]:
                place = f"{finding.rule} {finding.path}:{finding.line}"
                yield f"         {place} {finding.text[:100]} | {finding.message[:120]}"
