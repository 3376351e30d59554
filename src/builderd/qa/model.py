"""QA results of a version: the gate's checks of the live app, and the report's checks of a disposable copy.

The gate sends one request to the live app before the call that deployed it is answered. The report follows in the
background, on a copy without a network. Both are stored with the version, so that an old result never stands for new
code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from http.client import responses
from pathlib import PurePosixPath

from builderd.builders.model import JobType
from builderd.core.ids import BuilderId, DiskId
from builderd.core.resources import Resources
from builderd.reconciler.failures import describe_end, quoted
from builderd.sandboxes.model import SandboxEnd, SandboxReport

#: Findings kept per check, and characters of each.
MAX_FINDINGS, MAX_FINDING = 50, 500
#: Attempts at a report that a stop of the service interrupted.
MAX_ATTEMPTS = 2


class Outcome(StrEnum):
    PASSED = "passed"
    #: Worth a look, not an error.
    WARNING = "warning"
    FAILED = "failed"
    #: Not determined; the message says why.
    NOT_JUDGED = "not_judged"


class CheckName(StrEnum):
    """Names of checks, in display order."""

    # The gate
    PORT = "port"
    ANSWER = "answer"
    ALIVE = "alive"
    MEMORY = "memory"
    #: A job ended with exit code 0.
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
    """Result of one check. ``message`` has the request and the response; ``findings`` name pages or log lines."""

    name: CheckName
    outcome: Outcome
    message: str
    seconds: float = 0.0
    findings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Screenshot:
    """Screenshot in PNG; ``name`` is ``desktop`` or ``phone``, ``width`` and ``height`` in pixels."""

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
    #: It could not be made or was interrupted; ``note`` says why.
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class QaReport:
    """QA results of one version. ``gate`` is empty until the gate has run.

    ``copy_disk`` is the disposable copy's disk, set before it is created and cleared after its removal; ``owner`` the
    service that works on it. ``screenshots`` are the names of the stored ones.
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
        """True while the report is not finished."""
        return self.status in (ReportStatus.WAITING, ReportStatus.RUNNING)


def wanted(report: QaReport, by: str, now: datetime) -> QaReport:
    """Return the results with a report requested; unchanged while one is open."""
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
    """Return True if no check of the gate failed."""
    return all(check.outcome is not Outcome.FAILED for check in gate)


def gate_failure(gate: Sequence[Check]) -> str:
    """Return the messages of the failed checks."""
    return "\n".join(check.message for check in gate if check.outcome is Outcome.FAILED)


def in_order(checks: Sequence[Check]) -> tuple[Check, ...]:
    """Return the checks in display order, each cut to the stored size."""
    found = []
    for check in sorted(checks, key=lambda check: ORDER[check.name]):
        left_out = len(check.findings) - MAX_FINDINGS
        kept = tuple(shorten(finding, MAX_FINDING) for finding in check.findings[:MAX_FINDINGS])
        if left_out > 0:
            kept = (*kept, f"… and {left_out} more")
        found.append(replace(check, seconds=round(check.seconds, 3), findings=kept))
    return tuple(found)


def shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def pluralize(number: int, noun: str) -> str:
    """Return ``1 page``, ``2 pages``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


#: The app must still run this many seconds after the gate's request.
ALIVE_SECONDS = 0.5
#: Where the gate is not required, the call is answered after this many seconds; the app is watched on for a second.
QUICK_ALIVE_SECONDS = 0.1
WATCH_SECONDS = 1.0
#: An app that listens no more has so many seconds until its end is known: on a cluster that takes a second or two.
ENDING_SECONDS = 5.0
#: A worker is up once it has lived this many seconds.
WORKER_ALIVE_SECONDS = 1.0
#: Path of the gate's request, and seconds to wait for the response.
GATE_PATH = "/"
GATE_TIMEOUT = 15.0
#: A request that finds no server yet, or one that says 503, is repeated for this long, with this pause.
RETRY_SECONDS, RETRY_PAUSE = 5.0, 0.1
#: Longest time that the preview pauses a request for a waking app; a slower start gives a warning.
SLOW_START = 30.0


@dataclass(frozen=True, slots=True)
class Visit:
    """One GET request. Without a response ``status`` is None and ``fault`` says why; ``excerpt`` starts the body.

    ``is_shell``: a page that shows nothing before its scripts have run. ``led_to``: the path at which redirects ended.
    ``error``: the beginning of an answer of JSON that says that it failed, whatever its status.
    """

    status: int | None
    seconds: float
    fault: str = ""
    excerpt: str = ""
    is_shell: bool = False
    led_to: str = ""
    error: str = ""


# The gate's checks


def check_port(port: int, seconds: float) -> Check:
    """Check that the app listens; ``seconds`` since its start."""
    message = f"The app listened on 0.0.0.0:{port} {seconds:.2f} s after its start."
    if seconds <= SLOW_START:
        return Check(CheckName.PORT, Outcome.PASSED, message, seconds)
    message += f" A request that wakes it from sleep waits for at most {SLOW_START:g} s, and then gets a page to retry."
    return Check(CheckName.PORT, Outcome.WARNING, message, seconds)


def check_http2(visit: Visit, lines: Sequence[str]) -> Check:
    """Check that the app began a connection of HTTP/2; what it answers on it, such as to gRPC calls, is its own."""
    if visit.status is None:
        message = f"A connection of HTTP/2 was not begun: {visit.fault} (after {visit.seconds:.2f} s)." + quoted(lines)
        return Check(CheckName.ANSWER, Outcome.FAILED, message, visit.seconds)
    return Check(CheckName.ANSWER, Outcome.PASSED, f"It spoke HTTP/2 after {visit.seconds:.3f} s.", visit.seconds)


def check_answer(visit: Visit, path: str, lines: Sequence[str], hint: str = "") -> Check:
    """Check the response: any status below 500 passes, since many healthy apps have nothing at ``/``.

    A redirect must lead to a page that is there.
    """
    asked = f"GET {path}, which leads to {visit.led_to}," if visit.led_to else f"GET {path}"
    if visit.status is None:
        message = (
            f"{asked} got no answer: {visit.fault} (after {visit.seconds:.2f} s). It must answer HTTP requests on "
        )
        message += "its port; any status below 500 passes." + quoted(lines)
        return Check(CheckName.ANSWER, Outcome.FAILED, message, visit.seconds)
    phrase = responses.get(visit.status, "")
    said = f"{asked} was answered {f'{visit.status} {phrase}'.strip()} in {visit.seconds:.3f} s"
    is_dead = bool(visit.led_to) and (300 <= visit.status < 400 or visit.status in (404, 410))
    if is_dead:
        message = f"{said}: visitors of {path} see no page. Mend where it redirects to." + quoted(lines)
        return Check(CheckName.ANSWER, Outcome.FAILED, message, visit.seconds)
    if visit.status < 500 and visit.error:
        message = f"{said}, with the shape of an error: {visit.error!r}."
        return Check(CheckName.ANSWER, Outcome.WARNING, message, visit.seconds)
    if visit.status < 500:
        return Check(CheckName.ANSWER, Outcome.PASSED, f"{said}.", visit.seconds)
    body = f" Its body begins: {visit.excerpt!r}." if visit.excerpt else ""
    message = f"{said}; anything below 500 passes: {hint or 'mend what it failed at.'}{body}" + quoted(lines)
    return Check(CheckName.ANSWER, Outcome.FAILED, message, visit.seconds)


@dataclass(frozen=True, slots=True)
class SecondLook:
    """State of the app ``seconds`` after the gate's request; ``reachable``: its port is open."""

    report: SandboxReport
    reachable: bool
    seconds: float


def check_alive(look: SecondLook, port: int, path: str, resources: Resources, lines: Sequence[str]) -> Check:
    """Check that the app still runs and listens at the second look."""
    report, seconds = look.report, look.seconds
    after = f"{seconds:.2g} s after GET {path}"
    if not report.alive:
        how = describe_end(report.end, resources) if report.end else "it is gone"
        message = f"The app was to be up still {after}, but ended: {how}." + quoted(lines)
        return Check(CheckName.ALIVE, Outcome.FAILED, message, seconds)
    if not look.reachable:
        message = f"The app runs still {after}, but listens no more on 0.0.0.0:{port}." + quoted(lines)
        return Check(CheckName.ALIVE, Outcome.FAILED, message, seconds)
    return Check(CheckName.ALIVE, Outcome.PASSED, f"The app was up still {after}.", seconds)


def check_ended(end: SandboxEnd, resources: Resources, lines: Sequence[str]) -> Check:
    """Return the failed check of an app that answered and then ended by itself within ``WATCH_SECONDS``."""
    message = f"The app answered GET {GATE_PATH}, and ended within {WATCH_SECONDS:g} s: {describe_end(end, resources)}."
    return Check(CheckName.ALIVE, Outcome.FAILED, message + quoted(lines), WATCH_SECONDS)


def check_lived(report: SandboxReport, seconds: float, resources: Resources, lines: Sequence[str]) -> Check:
    """Check that a worker still runs ``seconds`` after its start."""
    if report.alive:
        return Check(CheckName.ALIVE, Outcome.PASSED, f"The worker was up {seconds:.1f} s after its start.", seconds)
    how = describe_end(report.end, resources) if report.end else "it is gone"
    message = f"The worker was to stay up, but ended: {how}." + quoted(lines)
    return Check(CheckName.ALIVE, Outcome.FAILED, message, seconds)


def check_memory(report: SandboxReport, resources: Resources) -> Check:
    """Check that the kernel killed no process of the sandbox for memory."""
    if report.out_of_memory:
        message = (
            f"The kernel killed a process of the app: out of memory, limit {resources.memory:g} GB. "
            "Give it more with resources.memory."
        )
        return Check(CheckName.MEMORY, Outcome.FAILED, message)
    return Check(CheckName.MEMORY, Outcome.PASSED, "Nothing was killed for want of memory.")


def check_exit(exit_code: int | None, how: str, lines: Sequence[str]) -> Check:
    """Check that a job ended with exit code 0."""
    if exit_code == 0:
        return Check(CheckName.EXIT, Outcome.PASSED, "The job exited with code 0.")
    return Check(CheckName.EXIT, Outcome.FAILED, f"The job was to exit with code 0, but {how}." + quoted(lines))


def gate_of_failure(reason: str, job_type: JobType) -> tuple[Check, ...]:
    """Return the gate's checks of a version that never came up."""
    name = CheckName.PORT if job_type.must_listen else CheckName.ALIVE
    return (Check(name, Outcome.FAILED, reason),)


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
    message = f"After the checks the app used {used / 1e6:.0f} MB, {share:.0%} of its limit."
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


def check_files(before: Mapping[str, FileState], after: Mapping[str, FileState]) -> Check:
    """Check that the files at the app's stop exist after its next start and have not shrunk."""
    gone, shrunk, changed = [], [], []
    for path, state in sorted(before.items()):
        folders = PurePosixPath(path).parts[:-1]
        if not _PASSING_FOLDERS.isdisjoint(folders) or path.endswith(_PASSING_SUFFIXES):
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
