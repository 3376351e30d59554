"""Checks of the QA gate: one request to the live app, before the call that deployed it is answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus

from builderd.domain.builders import JobType
from builderd.domain.failures import describe_end, quoted
from builderd.domain.qa import Check, CheckName, Outcome
from builderd.domain.resources import Resources
from builderd.domain.sandboxes import SandboxEnd, SandboxReport

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

    ``starved``: CPU seconds of an app that worked to the end of its time and got too few of them, None for any other.
    """

    status: int | None
    seconds: float
    fault: str = ""
    excerpt: str = ""
    location: str = ""
    starved: float | None = None


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
    if visit.starved is not None:
        return _not_judged("A connection of HTTP/2 was not begun", visit.starved, visit.seconds, lines)
    if visit.status is None:
        message = f"A connection of HTTP/2 was not begun: {visit.fault} (after {visit.seconds:.2f} s)." + quoted(lines)
        return Check(CheckName.ANSWER, Outcome.FAILED, message, visit.seconds)
    return Check(CheckName.ANSWER, Outcome.PASSED, f"It spoke HTTP/2 after {visit.seconds:.3f} s.", visit.seconds)


def check_answer(visit: Visit, path: str, lines: Sequence[str]) -> Check:
    """Check the response: any status below 500 passes, since many healthy apps have nothing at ``/``."""
    asked = f"GET {path}"
    if visit.starved is not None:
        what = "got no answer" if visit.status is None else f"was answered {_status(visit.status)}"
        return _not_judged(f"{asked} {what}", visit.starved, visit.seconds, lines)
    if visit.status is None:
        message = (
            f"{asked} got no answer: {visit.fault} (after {visit.seconds:.2f} s). It must answer HTTP requests on "
        )
        message += "its port; any status below 500 passes." + quoted(lines)
        return Check(CheckName.ANSWER, Outcome.FAILED, message, visit.seconds)
    said = f"{asked} was answered {_status(visit.status)} in {visit.seconds:.3f} s"
    if visit.status < 500:
        return Check(CheckName.ANSWER, Outcome.PASSED, f"{said}.", visit.seconds)
    body = f" Its body begins: {visit.excerpt!r}." if visit.excerpt else ""
    message = f"{said}; anything below 500 passes: mend what it failed at.{body}" + quoted(lines)
    return Check(CheckName.ANSWER, Outcome.FAILED, message, visit.seconds)


def _not_judged(what: str, cpu_seconds: float, seconds: float, lines: Sequence[str]) -> Check:
    message = (
        f"The machine is too busy to judge the app: {what}, and in all of its time it got {cpu_seconds:.1f} seconds of "
        "CPU. Try again when less runs here."
    )
    return Check(CheckName.ANSWER, Outcome.NOT_JUDGED, message + quoted(lines), seconds)


def _status(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


@dataclass(frozen=True, slots=True)
class SecondLook:
    """State of the app ``seconds`` after the gate's request; ``reachable``: its port is open."""

    report: SandboxReport
    reachable: bool
    seconds: float


def check_alive(look: SecondLook, port: int, path: str, resources: Resources, lines: Sequence[str]) -> Check:
    """Check that the app still runs and listens at the second look."""
    report, seconds = look.report, look.seconds
    after = f"{seconds:g} s after GET {path}"
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
