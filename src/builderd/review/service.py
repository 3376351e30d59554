"""Reviews: scan a version's files, and rate the findings by the policy."""

from __future__ import annotations

import asyncio
import posixpath
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from builderd.code.entrypoints import PACKAGE, Entry, PackageAt, entry_of, interpreted, read_package
from builderd.code.model import Bundle, path_error
from builderd.code.sources import (
    CODE,
    Kind,
    counts_as_code,
    executed_kinds,
    is_compiled,
    is_opaque,
    kind_of,
    reachable_files,
    select_files,
)
from builderd.core.ids import TenantId
from builderd.qa.port import Scan, Scanner
from builderd.review.model import (
    ADVICE,
    BLIND,
    SANITY,
    Finding,
    Hit,
    Policy,
    Report,
    Severity,
    content_hash,
    fingerprints,
    limit_findings,
)

#: Concurrent reviews of one tenant, so that it delays those of others less.
MAX_OF_TENANT = 2


@dataclass(frozen=True, slots=True)
class Gate:
    """Code review: the scanner, the policy, and an optional ``adviser``, which can only add holds.

    ``concurrency`` limits the concurrent reviews of each tenant.
    """

    scanner: Scanner
    policy: Policy
    adviser: Scanner | None = None
    concurrency: defaultdict[TenantId, asyncio.Semaphore] = field(
        default_factory=lambda: defaultdict(lambda: asyncio.Semaphore(MAX_OF_TENANT))
    )

    @property
    def key(self) -> str:
        """Hash of everything that decides a report besides the content: policy, scanners and their rules."""
        advised = f"\n{self.adviser.name}" if self.adviser else ""
        return content_hash(self.policy.hash, self.scanner.name + advised)

    async def prepare(self) -> None:
        """Start the scanner's warm process. Idempotent."""
        await self.scanner.prepare()

    async def close(self) -> None:
        """Stop the warm scanners."""
        await self.scanner.close()
        if self.adviser is not None:
            await self.adviser.close()

    async def review(self, bundle: Bundle, entrypoint: str, now: datetime) -> Report:
        """Scan the files and rate the hits. Content never raises: what cannot be judged becomes a finding."""
        begun = time.monotonic()
        run = await asyncio.to_thread(_run, bundle, entrypoint)
        scanned = self.scanner.scan(bundle, self.policy.limits, run, entrypoint)
        advised = self.adviser.scan(bundle, self.policy.limits, run, entrypoint) if self.adviser else asyncio.sleep(0)
        scan, advice = await asyncio.gather(scanned, advised)
        kept, left_out, untold = await asyncio.to_thread(
            lambda: limit_findings(assess(bundle, entrypoint, scan, self.policy, advice))
        )
        return Report(
            content_hash=content_hash(bundle.hash, entrypoint),
            policy_hash=self.key,
            findings=kept,
            scanners={**scan.scanners, **(advice.scanners if advice else {})},
            files=len(bundle.files),
            seconds=round(time.monotonic() - begun, 3),
            reviewed_at=now,
            left_out=left_out,
            untold=untold,
        )


def assess(
    bundle: Bundle, entrypoint: str, scan: Scan, policy: Policy, advice: Scan | None = None
) -> Iterator[Finding]:
    """Yield the findings that the policy makes of the scan's hits; hits of rules without a severity are dropped."""
    paths = {file.path for file in bundle.files}
    entry = entry_of(entrypoint, paths, _packages(bundle))
    others = () if entry.complete else (path for path in paths if not policy.is_demoted(path))
    roots = {*entry.roots, *others}
    starts = {*roots, *scan.hooks}
    runs = reachable_files(starts, scan.references, paths)
    imported = reachable_files(starts, {path: refers.imports for path, refers in scan.references.items()}, paths)
    run = _run(bundle, entrypoint)
    # A dynamic import or an incomplete entrypoint may start any file: reachability is unknown then.
    vague = not entry.complete or any(refers.anything for refers in scan.references.values())
    unread = [*_opaque_hits(bundle, run, run if vague else runs), *_size_hits(bundle, run, policy)]
    how = "What cannot be reviewed does not run. Look for a file that is very large, or nested very deep"
    failures = [] if scan.failure is None else [_hit("SAN-scanner", "", scan.failure, how)]
    if advice is not None and advice.failure is not None:
        how = "Deploy again later, or accept the finding with a reason"
        failures.append(_hit("LLM-failed", "", f"the language model was asked and {advice.failure}", how, bundle.hash))
    # The adviser may add hits of its own rules alone.
    advised = [hit for hit in (advice.hits if advice else ()) if hit.rule.startswith(ADVICE) and hit.rule not in BLIND]
    hits = [*_own_hits(bundle, entry), *unread, *failures, *scan.hits, *advised]
    for hit, fingerprint in zip(hits, fingerprints(hits), strict=True):
        severity = policy.severity(hit.rule)
        if severity is None:
            continue
        finding = Finding(fingerprint, hit.rule, severity, hit.path, hit.line, hit.text, hit.message, hit.advice)
        reaches = imported if hit.rule == "SAN-syntax" else runs
        is_demoted = _is_demoted(hit, entry, reaches, policy)
        yield replace(finding, severity=Severity.WARN, demoted=True) if is_demoted else finding


def _run(bundle: Bundle, entrypoint: str) -> Mapping[str, Kind]:
    """Return the files that the entrypoint passes to an interpreter: path → kind as that program reads it."""
    paths = {file.path for file in bundle.files}
    return executed_kinds(bundle.files, interpreted(entrypoint, paths, _packages(bundle)))


def _packages(bundle: Bundle) -> PackageAt:
    files = {file.path: file for file in bundle.files if file.path.endswith(PACKAGE)}
    return lambda folder: read_package(files.get(posixpath.join(folder, PACKAGE)))


def _is_demoted(hit: Hit, entry: Entry, runs: Collection[str], policy: Policy) -> bool:
    if not hit.path or policy.severity(hit.rule) is Severity.WARN:
        return False
    if hit.rule == "SAN-syntax":
        # For an unknown entrypoint, a script may be for a browser or for a compiler.
        scripted = not entry.complete and not hit.path.endswith(".py")
        return hit.path not in runs or scripted
    return not hit.rule.startswith(SANITY) and policy.is_demoted(hit.path) and hit.path not in runs


def _own_hits(bundle: Bundle, entry: Entry) -> Iterator[Hit]:
    """Yield hits on paths and the entrypoint, which need no file content."""
    if entry.missing is not None:
        near = ", ".join(file.path for file in bundle.files if kind_of(file) in CODE)[:200]
        advice = f"Name a file that is there in the entrypoint{f': {near}' if near else ''}"
        yield _hit("SAN-entrypoint", "", f"the entrypoint starts {entry.missing}, which is not among the files", advice)
    for file in bundle.files:
        if (error := path_error(file.path)) is not None:
            yield _hit("SAN-path", "", f"a path {error}", "Rename the file")


def _opaque_hits(bundle: Bundle, run: Mapping[str, Kind], loaded: Collection[str]) -> Iterator[Hit]:
    """Yield hits on binary programs, and on other executed files that cannot be read."""
    for file in bundle.files:
        kind = run.get(file.path) or kind_of(file)
        opaque = file.path in run and is_opaque(file, kind)
        if kind is Kind.BINARY or opaque or (file.path in loaded and is_compiled(file)):
            advice = "Install it as a dependency. If it is meant, accept the finding with a reason"
            message = "this program is not text, so it cannot be reviewed"
            yield _hit("RSK-binary", file.path, message, advice, file.sha256.hex())


def _size_hits(bundle: Bundle, run: Mapping[str, Kind], policy: Policy) -> Iterator[Hit]:
    code = [file for file in bundle.files if counts_as_code(file, run.get(file.path) or kind_of(file))]
    limits, total = policy.limits, sum(file.size for file in code)
    reading = select_files(bundle.files, limits, run)
    unread = f"; {len(reading.beyond)} were not read, {reading.beyond[0].path} among them" if reading.beyond else ""
    advice = "Leave out what does not belong to the app. If it is meant, accept the finding with a reason"
    if len(code) > limits.files:
        message = f"{len(code)} files of code, of which {limits.files} are reviewed at most{unread}"
        yield _hit("RSK-size", "", message, advice, bundle.hash)
    if total > limits.total_bytes:
        message = f"{total} bytes of code, of which {limits.total_bytes} are reviewed at most{unread}"
        yield _hit("RSK-size", "", message, advice, bundle.hash)
    for file in reading.too_large:
        message = f"{file.size} bytes of code, over the limit of {limits.file_bytes} for a file, so not reviewed"
        yield _hit("RSK-size", file.path, message, advice, file.sha256.hex())


def _hit(rule: str, path: str, message: str, advice: str, mark: str = "") -> Hit:
    return Hit(rule, path, 0, "", mark, message, advice)
