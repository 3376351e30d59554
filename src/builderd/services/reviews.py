"""Reviews: have a version's files scanned, judge what was seen by the policy, and keep what people accept."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime

from builderd.domain.bundles import Bundle, BundleFile, path_fault
from builderd.domain.entrypoints import Entry, entry_of
from builderd.domain.reach import reached
from builderd.domain.review_policies import Policy
from builderd.domain.reviews import (
    SANITY,
    Finding,
    Hit,
    Report,
    Severity,
    content_hash,
    cut,
    demote,
    fingerprints,
)
from builderd.domain.sources import CODE, Kind, kind_of
from builderd.ports.scanners import Scan, Scanner


async def review(scanner: Scanner, policy: Policy, bundle: Bundle, entrypoint: str, now: datetime) -> Report:
    """Scan the files and judge them. Never raises for what is in them: what cannot be judged is a finding."""
    begun = time.monotonic()
    scan = await scanner.scan(bundle, policy.limits)
    findings, left_out = cut(list(assess(bundle, entrypoint, scan, policy)))
    return Report(
        content_hash=content_hash(bundle.hash, entrypoint),
        policy_hash=policy_key(policy, scanner),
        findings=findings,
        scanners=dict(scan.scanners),
        files=len(bundle.files),
        seconds=round(time.monotonic() - begun, 3),
        reviewed_at=now,
        left_out=left_out,
    )


def policy_key(policy: Policy, scanner: Scanner) -> str:
    """Names all that decides a report besides the content: the policy, and the scanners with their rules."""
    return content_hash(policy.hash, scanner.name)


def assess(bundle: Bundle, entrypoint: str, scan: Scan, policy: Policy) -> Iterator[Finding]:
    """What the policy makes of what was seen. What the policy leaves out is left out."""
    paths = {file.path for file in bundle.files}
    entry = entry_of(entrypoint, paths)
    hits = [*_own_hits(bundle, entry, policy), *_failures(scan), *scan.hits]
    roots = set(entry.roots) if entry.known else {path for path in paths if not policy.weighs_less(path)}
    starts = {*roots, *scan.hooks}
    runs = reached(starts, scan.references, paths)
    imported = reached(starts, {path: refers.imports for path, refers in scan.references.items()}, paths)
    for hit, fingerprint in zip(hits, fingerprints(hits), strict=True):
        severity = policy.severity(hit.rule)
        if severity is None:
            continue
        finding = Finding(fingerprint, hit.rule, severity, hit.path, hit.line, hit.text, hit.message, hit.advice)
        reaches = imported if hit.rule == "SAN-syntax" else runs
        yield demote(finding) if _weighs_less(hit, entry, reaches, policy) else finding


def _weighs_less(hit: Hit, entry: Entry, runs: Collection[str], policy: Policy) -> bool:
    if not hit.path or policy.severity(hit.rule) is Severity.WARN:
        return False
    if hit.rule == "SAN-syntax":
        # Where it is not known what is started, a script may be for a browser or for a compiler.
        scripted = not entry.known and not hit.path.endswith(".py")
        return hit.path not in runs or scripted
    return not hit.rule.startswith(SANITY) and policy.weighs_less(hit.path) and hit.path not in runs


def _own_hits(bundle: Bundle, entry: Entry, policy: Policy) -> Iterator[Hit]:
    """Paths, sizes and the entrypoint: what can be told without reading a file."""
    if entry.missing is not None:
        near = ", ".join(file.path for file in bundle.files if kind_of(file) in CODE)[:200]
        advice = f"Name a file that is there in the entrypoint{f': {near}' if near else ''}"
        yield _hit("SAN-entrypoint", "", f"the entrypoint starts {entry.missing}, which is not among the files", advice)
    for file in bundle.files:
        if (fault := path_fault(file.path)) is not None:
            yield _hit("SAN-path", "", f"a path {fault}", "Rename the file")
        elif kind_of(file) is Kind.BINARY:
            advice = "Install it as a dependency. If it is meant, accept the finding with a reason"
            yield _hit("RSK-binary", file.path, "this is a program in machine code, which nobody can review", advice)
    yield from _size_hits([file for file in bundle.files if kind_of(file) in CODE], policy)


def _size_hits(code: Sequence[BundleFile], policy: Policy) -> Iterator[Hit]:
    limits, total = policy.limits, sum(file.size for file in code)
    advice = "Leave out what does not belong to the app. If it is meant, accept the finding with a reason"
    if len(code) > limits.files:
        yield _hit("RSK-size", "", f"{len(code)} files of code, of which {limits.files} are reviewed at most", advice)
    if total > limits.total_bytes:
        yield _hit("RSK-size", "", f"{total} bytes of code, of which {limits.total_bytes} are reviewed at most", advice)
    for file in code:
        if file.size > limits.file_bytes:
            message = f"{file.size} bytes of code, over the limit of {limits.file_bytes} for a file, so not reviewed"
            yield _hit("RSK-size", file.path, message, advice)


def _failures(scan: Scan) -> Iterator[Hit]:
    if scan.failure is not None:
        advice = "What cannot be reviewed does not run. Look for a file that is very large, or nested very deep"
        yield _hit("SAN-scanner", "", scan.failure, advice)


def _hit(rule: str, path: str, message: str, advice: str) -> Hit:
    return Hit(rule, path, 0, "", "", message, advice)
