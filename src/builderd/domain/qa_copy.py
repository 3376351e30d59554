"""Checks of the QA report, made on a disposable copy of the app without a network."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from builderd.domain.qa import MAX_FINDING, Check, CheckName, Outcome, counted, shorten

#: An app has so many seconds to end after SIGTERM.
TERM_SECONDS = 5.0
#: From so much of its limit on, an app's memory is told of.
MEMORY_SHARE = 0.8
#: From so much of a vCPU on, what an idle app uses is told of.
IDLE_SHARE = 0.2


# The report's checks


def check_idle(cpu_seconds: float, seconds: float) -> Check:
    """What the app uses of a vCPU when nobody asks anything of it."""
    share = cpu_seconds / seconds if seconds > 0 else 0.0
    message = f"With nobody asking, the app used {share:.0%} of a vCPU for {seconds:.1f} s."
    outcome = Outcome.WARNING if share > IDLE_SHARE else Outcome.PASSED
    return Check(CheckName.IDLE_CPU, outcome, message, seconds)


def check_memory_use(used: int, limit: int) -> Check:
    """Bytes, after the other checks."""
    share = used / limit if limit else 0.0
    message = f"After the checks the app held {used / 1e6:.0f} MB, {share:.0%} of its limit."
    return Check(CheckName.MEMORY_USE, Outcome.WARNING if share > MEMORY_SHARE else Outcome.PASSED, message)


def check_term(seconds: float) -> Check:
    """Ended by itself within ``TERM_SECONDS`` after SIGTERM."""
    if seconds < TERM_SECONDS:
        message = f"The app ended {seconds:.2f} s after SIGTERM."
        return Check(CheckName.SIGTERM, Outcome.PASSED, message, seconds)
    message = (
        f"The app did not end within {TERM_SECONDS:g} s after SIGTERM and had to be killed: what it had not yet "
        "written is lost at every stop, restart and redeploy."
    )
    return Check(CheckName.SIGTERM, Outcome.FAILED, message, seconds)


#: The exception that ends a traceback of Python, and what Node writes of an error that nobody caught.
_TRACEBACK = "Traceback (most recent call last):"
_PYTHON_ERROR = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception|Exit|Interrupt|Warning|[A-Z]\w*)(?::.*|$)")


_NODE_ERROR = re.compile(
    r"^(?:Uncaught )?(?:\[?[A-Z]\w*Error\b.*|Error:.*|.*Unhandled(?:PromiseRejection|Rejection).*)"
)
_NODE_FRAME = re.compile(r"^\s+at .+[:(]\S*\d+")


#: What programs say when a network is out of reach.
_OUT_OF_REACH = re.compile(
    r"Network is unreachable|No route to host|Host is unreachable|Temporary failure in name resolution|EAI_AGAIN"
    r"|ENETUNREACH|EHOSTUNREACH|ENOTFOUND|getaddrinfo|Name or service not known|NameResolutionError"
    r"|Max retries exceeded|ConnectTimeout|ConnectionRefusedError|Could not resolve"
    r"|Failed to resolve|APIConnectionError|name resolution",
    re.IGNORECASE,
)


def is_out_of_reach(text: str) -> bool:
    """Whether this is what programs say when a network cannot be reached, as none can from a copy."""
    return _OUT_OF_REACH.search(text) is not None


def check_log(lines: Sequence[str]) -> Check:
    """Tracebacks and errors that nobody caught; those of a network that a copy cannot reach are not judged."""
    errors = errors_in(lines)
    if not errors:
        return Check(
            CheckName.LOG, Outcome.PASSED, f"No traceback in the {counted(len(lines), 'line')} that the copy wrote."
        )
    blameless = [error for error in errors if is_out_of_reach(error)]
    told = tuple(f"{error} ({count} times)" if count > 1 else error for error, count in errors.items())
    if len(blameless) == len(errors):
        message = "The tracebacks in the copy's log are of a network that it may not reach."
        return Check(CheckName.LOG, Outcome.NOT_JUDGED, message, findings=told)
    return Check(
        CheckName.LOG, Outcome.FAILED, f"{counted(sum(errors.values()), 'traceback')} in the copy's log.", findings=told
    )


def errors_in(lines: Sequence[str]) -> Mapping[str, int]:
    """How often each error ends a traceback in these lines."""
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
    """One file of an app: its size in bytes and the sha256 of its content."""

    size: int
    sha256: str


#: Files that come and go without anybody's loss.
_PASSING_FOLDERS = frozenset(
    {"__pycache__", ".cache", "node_modules", ".git", "tmp", ".tmp", ".config", ".npm", ".local"}
)
_PASSING_SUFFIXES = ("-wal", "-shm", "-journal", ".pid", ".sock", ".lock", ".pyc", ".log", ".tmp", ".swp")


def is_temporary(path: str) -> bool:
    """A cache, a lock, a log, and the like."""
    folders = PurePosixPath(path).parts[:-1]
    return any(folder in _PASSING_FOLDERS for folder in folders) or path.endswith(_PASSING_SUFFIXES)


def check_files(before: Mapping[str, FileState], after: Mapping[str, FileState]) -> Check:
    """What was on the disk when the app stopped is there after its next start, and has not shrunk."""
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
        message = (
            f"{counted(len(lost), 'file')} lost data over a restart: the app removes or overwrites what it starts with."
        )
        return Check(CheckName.FILES, Outcome.FAILED, message, findings=lost)
    message = f"{counted(len(before), 'file')} kept over a restart" + (f", {len(changed)} changed." if changed else ".")
    return Check(CheckName.FILES, Outcome.PASSED, message, findings=tuple(changed))


#: Where the app is asked for something, and so may need what a copy does not have.
NEEDS_NETWORK = frozenset(
    {CheckName.CRAWL, CheckName.OPENAPI, CheckName.BROWSER, CheckName.RESTART, CheckName.COPY, CheckName.STAYS_UP}
)


def excuse_failure(check: Check, why: str) -> Check:
    """A failure that may come of what the copy lacks is not judged."""
    if check.outcome is not Outcome.FAILED or check.name not in NEEDS_NETWORK:
        return check
    return replace(check, outcome=Outcome.NOT_JUDGED, message=f"{check.message} Not judged: {why}")
