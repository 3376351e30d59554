"""Checks of the QA gate: one request to the live app, before the call that deployed it is answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus

from builderd.domain.failures import describe_end, quoted
from builderd.domain.qa import Check, CheckName, Outcome
from builderd.domain.resources import Resources
from builderd.domain.sandboxes import SandboxReport

#: The app must still be up so many seconds after it was asked.
ALIVE_SECONDS = 0.5
#: What the gate asks for, and how long it waits for the answer.
GATE_PATH = "/"
GATE_TIMEOUT = 15.0
#: A visitor who wakes an app is held for so long at most: one that starts slower is told of.
SLOW_START = 30.0


@dataclass(frozen=True, slots=True)
class Visit:
    """One GET. ``status`` is None when no answer came, and ``fault`` then says why; ``excerpt`` begins the body."""

    status: int | None
    seconds: float
    fault: str = ""
    excerpt: str = ""
    location: str = ""


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
