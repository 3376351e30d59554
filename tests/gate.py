"""The review gate on its real scanner, as tests of any room use it."""

from __future__ import annotations

import asyncio
import secrets
import string
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from builderd.bootstrap.review import make_review_policy, make_scanner
from builderd.code.model import Bundle, BundleFile, make_bundle
from builderd.review import service as reviews
from builderd.review.model import Acceptance, Finding, Policy, Report, Severity, Verdict, judge
from builderd.review.scanners.tripwire.scanner import TripwireScanner
from builderd.settings import Settings

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
Files = Mapping[str, str | bytes]


@dataclass(frozen=True, slots=True)
class Reviewed:
    """Outcome of a review."""

    report: Report
    verdict: Verdict

    def of(self, rule: str) -> list[Finding]:
        """Findings of the rules that begin so."""
        return [finding for finding in self.report.findings if finding.rule.startswith(rule)]

    def rules(self, severity: Severity) -> set[str]:
        return {finding.rule for finding in self.report.findings if finding.severity is severity}


@dataclass(frozen=True, slots=True)
class Gate:
    scanner: TripwireScanner
    policy: Policy

    def review(self, files: Files, entrypoint: str = "python3 app.py", accepted: Iterable[Acceptance] = ()) -> Reviewed:
        gate = reviews.Gate(self.scanner, self.policy)
        report = asyncio.run(gate.review(bundle_of(files), entrypoint, NOW))
        return Reviewed(report, judge(report, accepted, NOW))


@contextmanager
def real_gate() -> Iterator[Gate]:
    """Return a gate with the default policy; its worker ends with the block."""
    scanner = make_scanner(Settings())
    try:
        yield Gate(scanner, make_review_policy(Settings()))
    finally:
        asyncio.run(scanner.close())


def bundle_of(files: Files) -> Bundle:
    """Text or bytes by path."""
    return make_bundle(
        BundleFile(path, content.encode() if isinstance(content, str) else content) for path, content in files.items()
    )


def stripe_key(mode: str = "live") -> str:
    """A key of the right shape that opens nothing, made anew each time so that no scanner of this repository minds."""
    return f"sk_{mode}_" + "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(24))
