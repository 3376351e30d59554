"""Checks of the QA report, made on a disposable copy of the app without a network."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from builderd.domain.qa import MAX_FINDING, Check, CheckName, Outcome, pluralize, shorten

#: Seconds that an app has to end after SIGTERM.
TERM_SECONDS = 5.0
#: Share of the memory limit from which on the check warns.
MEMORY_SHARE = 0.8
#: Share of a vCPU from which on the idle check warns.
IDLE_SHARE = 0.2


# The report's checks


def check_idle(cpu_seconds: float, seconds: float) -> Check:
    """Check the CPU usage of the app without requests."""
    share = cpu_seconds / seconds if seconds > 0 else 0.0
    message = f"Without requests, the app used {share:.0%} of a vCPU for {seconds:.1f} s."
    outcome = Outcome.WARNING if share > IDLE_SHARE else Outcome.PASSED
    return Check(CheckName.IDLE_CPU, outcome, message, seconds)


def check_memory_use(used: int, limit: int) -> Check:
    """Check the memory usage after the other checks; both in bytes."""
    share = used / limit if limit else 0.0
    message = f"After the checks the app held {used / 1e6:.0f} MB, {share:.0%} of its limit."
    return Check(CheckName.MEMORY_USE, Outcome.WARNING if share > MEMORY_SHARE else Outcome.PASSED, message)


def check_term(seconds: float) -> Check:
    """Check that the app ends within ``TERM_SECONDS`` after SIGTERM."""
    if seconds < TERM_SECONDS:
        message = f"The app ended {seconds:.2f} s after SIGTERM."
        return Check(CheckName.SIGTERM, Outcome.PASSED, message, seconds)
    message = (
        f"The app did not end within {TERM_SECONDS:g} s after SIGTERM and had to be killed: what it had not yet "
        "written is lost at every stop, restart and redeploy."
    )
    return Check(CheckName.SIGTERM, Outcome.FAILED, message, seconds)


#: Last line of a Python traceback, and Node's report of an uncaught error.
_TRACEBACK = "Traceback (most recent call last):"
_PYTHON_ERROR = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception|Exit|Interrupt|Warning|[A-Z]\w*)(?::.*|$)")


_NODE_ERROR = re.compile(
    r"^(?:Uncaught )?(?:\[?[A-Z]\w*Error\b.*|Error:.*|.*Unhandled(?:PromiseRejection|Rejection).*)"
)
_NODE_FRAME = re.compile(r"^\s+at .+[:(]\S*\d+")


#: Messages of programs about an unreachable network.
_OUT_OF_REACH = re.compile(
    r"Network is unreachable|No route to host|Host is unreachable|Temporary failure in name resolution|EAI_AGAIN"
    r"|ENETUNREACH|EHOSTUNREACH|ENOTFOUND|getaddrinfo|Name or service not known|NameResolutionError"
    r"|Max retries exceeded|ConnectTimeout|ConnectionRefusedError|Could not resolve"
    r"|Failed to resolve|APIConnectionError|name resolution",
    re.IGNORECASE,
)


def is_out_of_reach(text: str) -> bool:
    """Return True for a message about an unreachable network: a copy has none."""
    return _OUT_OF_REACH.search(text) is not None


def check_log(lines: Sequence[str]) -> Check:
    """Check the log for tracebacks and uncaught errors; those about the network, which a copy lacks, do not count."""
    errors = errors_in(lines)
    if not errors:
        return Check(
            CheckName.LOG, Outcome.PASSED, f"No traceback in the {pluralize(len(lines), 'line')} that the copy wrote."
        )
    of_network = [error for error in errors if is_out_of_reach(error)]
    findings = tuple(f"{error} ({count} times)" if count > 1 else error for error, count in errors.items())
    if len(of_network) == len(errors):
        message = "The tracebacks in the copy's log are of a network that it may not reach."
        return Check(CheckName.LOG, Outcome.NOT_JUDGED, message, findings=findings)
    return Check(
        CheckName.LOG,
        Outcome.FAILED,
        f"{pluralize(sum(errors.values()), 'traceback')} in the copy's log.",
        findings=findings,
    )


def errors_in(lines: Sequence[str]) -> Mapping[str, int]:
    """Return error → number of tracebacks that end with it."""
    found: dict[str, int] = {}
    inside = False
    for index, line in enumerate(lines):
        if _TRACEBACK in line:
            inside = True
            continue
        following = lines[index + 1] if index + 1 < len(lines) else ""
        if inside and _PYTHON_ERROR.match(line):
            inside = False
        elif not (_NODE_ERROR.match(line) and _NODE_FRAME.match(following)):
            continue
        error = shorten(line.strip(), MAX_FINDING)
        found[error] = found.get(error, 0) + 1
    return found


@dataclass(frozen=True, slots=True)
class FileState:
    """Size in bytes and SHA-256 of a file's content."""

    size: int
    sha256: str


#: Temporary files, whose removal loses nothing.
_PASSING_FOLDERS = frozenset(
    {"__pycache__", ".cache", "node_modules", ".git", "tmp", ".tmp", ".config", ".npm", ".local"}
)
_PASSING_SUFFIXES = ("-wal", "-shm", "-journal", ".pid", ".sock", ".lock", ".pyc", ".log", ".tmp", ".swp")


def is_temporary(path: str) -> bool:
    """Return True for caches, locks, logs and the like."""
    folders = PurePosixPath(path).parts[:-1]
    return any(folder in _PASSING_FOLDERS for folder in folders) or path.endswith(_PASSING_SUFFIXES)


def check_files(before: Mapping[str, FileState], after: Mapping[str, FileState]) -> Check:
    """Check that the files at the app's stop exist after its next start and have not shrunk."""
    gone, shrunk, changed = [], [], []
    for path, state in sorted(before.items()):
        if is_temporary(path):
            continue
        now = after.get(path)
        if now is None:
            gone.append(f"{path} ({state.size} bytes) is gone")
        elif now.size < state.size:
            shrunk.append(f"{path} shrank from {state.size} to {now.size} bytes")
        elif now != state:
            changed.append(f"{path} was changed")
    if lost := (*gone, *shrunk):
        files = pluralize(len(lost), "file")
        message = f"{files} lost data over a restart: the app removes or overwrites what it starts with."
        return Check(CheckName.FILES, Outcome.FAILED, message, findings=lost)
    message = f"{pluralize(len(before), 'file')} kept over a restart" + (
        f", {len(changed)} changed." if changed else "."
    )
    return Check(CheckName.FILES, Outcome.PASSED, message, findings=tuple(changed))


#: Checks with requests to the app, which may need the network that a copy lacks.
NEEDS_NETWORK = frozenset(
    {CheckName.CRAWL, CheckName.OPENAPI, CheckName.BROWSER, CheckName.RESTART, CheckName.COPY, CheckName.STAYS_UP}
)


def as_not_judged(check: Check, why: str) -> Check:
    """Turn a failure that the missing network may have caused into ``not_judged``."""
    if check.outcome is not Outcome.FAILED or check.name not in NEEDS_NETWORK:
        return check
    return replace(check, outcome=Outcome.NOT_JUDGED, message=f"{check.message} Not judged: {why}")
