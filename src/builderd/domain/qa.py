"""QA: what was checked of a version once it ran, and what came of it.

The gate's checks are made of the live app, with one request, before the call that deployed it is answered; the
others of a disposable copy afterwards. Both are kept with the version, so an old verdict never stands for new code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from http import HTTPStatus
from pathlib import PurePosixPath

from builderd.domain.failures import describe_end, quoted
from builderd.domain.ids import BuilderId, DiskId
from builderd.domain.resources import Resources
from builderd.domain.sandboxes import SandboxReport

#: The app must still be up so many seconds after it was asked.
ALIVE_SECONDS = 0.5
#: What the gate asks for, and how long it waits for the answer.
GATE_PATH = "/"
GATE_TIMEOUT = 15.0
#: An app has so many seconds to end after SIGTERM.
TERM_SECONDS = 5.0
#: A visitor who wakes an app is held for so long at most: one that starts slower is told of.
SLOW_START = 30.0
#: From so much of its limit on, an app's memory is told of.
MEMORY_SHARE = 0.8
#: From so much of a vCPU on, what an idle app uses is told of.
IDLE_SHARE = 0.2
#: So many findings are kept of one check, and so many characters of each.
MAX_FINDINGS, MAX_FINDING = 50, 500
#: So often a report is begun anew that the service's own end has cut off.
MAX_ATTEMPTS = 2


class Outcome(StrEnum):
    PASSED = "passed"
    #: Worth a look, and no fault.
    WARNING = "warning"
    FAILED = "failed"
    #: Could not be found out, and the message says why.
    NOT_JUDGED = "not_judged"


class CheckName(StrEnum):
    """In the order in which they are shown."""

    # The gate
    PORT = "port"
    ANSWER = "answer"
    ALIVE = "alive"
    MEMORY = "memory"
    #: Of a job: it ended with exit code 0.
    EXIT = "exit"
    # The report, on a copy
    COPY = "copy"
    CRAWL = "crawl"
    RESTART = "restart"
    LINKS = "links"
    ROBOTS = "robots"
    OPENAPI = "openapi"
    BROWSER = "browser"
    CONSOLE = "console"
    ACCESSIBILITY = "accessibility"
    STAYS_UP = "stays_up"
    MEMORY_USE = "memory_use"
    IDLE_CPU = "idle_cpu"
    LOG = "log"
    SIGTERM = "sigterm"
    FILES = "files"


ORDER = {name: index for index, name in enumerate(CheckName)}


@dataclass(frozen=True, slots=True)
class Check:
    """``message`` says what was asked and what came back; ``findings`` are single places, such as pages or lines."""

    name: CheckName
    outcome: Outcome
    message: str
    seconds: float = 0.0
    findings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Screenshot:
    """``name`` is ``desktop`` or ``phone``; ``png`` the picture of so many pixels."""

    name: str
    width: int
    height: int
    png: bytes


class ReportStatus(StrEnum):
    #: No report is made of this version (yet).
    NONE = "none"
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    #: It could not be made, or was cut off; ``note`` says why.
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class QaReport:
    """What is known of one version. ``gate`` is empty until the gate has judged it.

    ``copy_disk`` names the disk of the disposable copy, from before it is made until after it is gone; ``owner`` the
    service that works on it. ``screenshots`` are the names of those that are kept.
    """

    builder_id: BuilderId
    version: int
    status: ReportStatus = ReportStatus.NONE
    gate: tuple[Check, ...] = ()
    gate_at: datetime | None = None
    checks: tuple[Check, ...] = ()
    screenshots: tuple[str, ...] = ()
    note: str = ""
    requested_by: str = ""
    requested_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    attempts: int = 0
    owner: str = ""
    copy_disk: DiskId | None = None

    @property
    def is_open(self) -> bool:
        """Whether the report is still to come."""
        return self.status in (ReportStatus.WAITING, ReportStatus.RUNNING)


@dataclass(frozen=True, slots=True)
class Visit:
    """One GET. ``status`` is None when no answer came, and ``fault`` then says why; ``excerpt`` begins the body."""

    status: int | None
    seconds: float
    fault: str = ""
    excerpt: str = ""
    location: str = ""


def wanted(report: QaReport, by: str, now: datetime) -> QaReport:
    """The same with a report to be made; one that is under way stays as it is."""
    if report.is_open:
        return report
    return replace(
        report,
        status=ReportStatus.WAITING,
        note="",
        requested_by=by,
        requested_at=now,
        started_at=None,
        finished_at=None,
        attempts=0,
    )


def gate_passed(gate: Sequence[Check]) -> bool:
    """Whether all of the gate's checks hold."""
    return all(check.outcome is not Outcome.FAILED for check in gate)


def gate_failure(gate: Sequence[Check]) -> str:
    """What is wrong, for people: the messages of the checks that failed."""
    return "\n".join(check.message for check in gate if check.outcome is Outcome.FAILED)


def in_order(checks: Sequence[Check]) -> tuple[Check, ...]:
    """As they are shown, each cut to what is kept."""
    return tuple(sorted((_cut(check) for check in checks), key=lambda check: ORDER[check.name]))


def _cut(check: Check) -> Check:
    left_out = len(check.findings) - MAX_FINDINGS
    kept = tuple(_short(finding, MAX_FINDING) for finding in check.findings[:MAX_FINDINGS])
    if left_out > 0:
        kept = (*kept, f"… and {left_out} more")
    return replace(check, seconds=round(check.seconds, 3), findings=kept)


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def counted(number: int, noun: str) -> str:
    """``1 page``, ``2 pages``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


# The gate's checks


def check_port(port: int, seconds: float) -> Check:
    """The app listens, so many seconds after its start."""
    message = f"The app listened on 0.0.0.0:{port} {seconds:.2f} s after its start."
    if seconds <= SLOW_START:
        return Check(CheckName.PORT, Outcome.PASSED, message, seconds)
    message += f" Whoever wakes it from idleness is held for {SLOW_START:g} s only, and then told to come again."
    return Check(CheckName.PORT, Outcome.WARNING, message, seconds)


def check_answer(visit: Visit, path: str, lines: Sequence[str]) -> Check:
    """Anything below 500 will do: many healthy apps have nothing at ``/``."""
    asked = f"GET {path}"
    if visit.status is None:
        message = f"{asked} got no answer: {visit.fault} (after {visit.seconds:.2f} s)." + quoted(lines)
        return Check(CheckName.ANSWER, Outcome.FAILED, message, visit.seconds)
    said = f"{asked} was answered {_status(visit.status)} in {visit.seconds:.3f} s"
    if visit.status < 500:
        return Check(CheckName.ANSWER, Outcome.PASSED, f"{said}.", visit.seconds)
    body = f" Its body begins: {visit.excerpt!r}." if visit.excerpt else ""
    message = f"{said}; anything below 500 passes.{body}" + quoted(lines)
    return Check(CheckName.ANSWER, Outcome.FAILED, message, visit.seconds)


def _status(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def check_alive(
    report: SandboxReport, reachable: bool, port: int, path: str, resources: Resources, lines: Sequence[str]
) -> Check:
    """Still up, and still listening, ``ALIVE_SECONDS`` after it was asked."""
    after = f"{ALIVE_SECONDS:g} s after GET {path}"
    if not report.alive:
        how = describe_end(report.end, resources) if report.end else "it is gone"
        message = f"The app was to be up still {after}, but ended: {how}." + quoted(lines)
        return Check(CheckName.ALIVE, Outcome.FAILED, message, ALIVE_SECONDS)
    if not reachable:
        message = f"The app runs still {after}, but listens no more on 0.0.0.0:{port}." + quoted(lines)
        return Check(CheckName.ALIVE, Outcome.FAILED, message, ALIVE_SECONDS)
    return Check(CheckName.ALIVE, Outcome.PASSED, f"The app was up still {after}.", ALIVE_SECONDS)


def check_memory(report: SandboxReport, resources: Resources) -> Check:
    """The kernel killed nothing in the sandbox for want of memory."""
    if report.out_of_memory:
        message = (
            f"The kernel killed a process of the app: out of memory, limit {resources.memory:g} GB. "
            "Give it more with resources.memory."
        )
        return Check(CheckName.MEMORY, Outcome.FAILED, message)
    return Check(CheckName.MEMORY, Outcome.PASSED, "Nothing was killed for want of memory.")


def check_exit(exit_code: int | None, how: str, lines: Sequence[str]) -> Check:
    """A job is to end with 0."""
    if exit_code == 0:
        return Check(CheckName.EXIT, Outcome.PASSED, "The job exited with code 0.")
    return Check(CheckName.EXIT, Outcome.FAILED, f"The job was to exit with code 0, but {how}." + quoted(lines))


def gate_of_failure(reason: str) -> tuple[Check, ...]:
    """The gate of a version that did not get as far as to listen."""
    return (Check(CheckName.PORT, Outcome.FAILED, reason),)


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
        error = _short(line.strip(), MAX_FINDING)
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
