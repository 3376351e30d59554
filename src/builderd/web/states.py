"""A builder's state as a sentence: a shape, a word, why, and what happens next."""

from __future__ import annotations

from dataclasses import dataclass

from builderd.domain.builders import Builder, Desired, Status, StopKind
from builderd.services.application import Limits
from builderd.web.shown import duration, sentence


@dataclass(frozen=True, slots=True)
class State:
    """``kind`` colours it and ``icon`` is its shape; ``turns`` while something really goes on."""

    kind: str
    word: str
    icon: str
    why: str
    turns: bool = False


def state_of(builder: Builder, limits: Limits) -> State:
    """Return the builder's state in words for people."""
    if builder.desired is Desired.DELETED:
        return _going_on("deleting", "Its apps stop, and its files are removed.")
    if builder.candidate is not None:
        serves = f" Version {builder.version} serves on." if builder.status is Status.RUNNING else ""
        return _going_on("deploying", f"Version {builder.candidate.version} is being deployed.{serves}")
    reason = sentence(builder.status_reason)
    match builder.status:
        case Status.CREATING:
            return _going_on("deploying", reason or f"Version {builder.version} is being deployed.")
        case Status.RUNNING:
            return _running(builder, limits, reason)
        case Status.STOPPED:
            return _stopped(builder, reason)
        case Status.FAILED:
            return State("failed", "failed", "octagon-x", reason.split("\n")[0])
        case Status.COMPLETED:
            return State("completed", "completed", "circle-check", f"{reason} It runs again when you start it.")
    return State("stopped", builder.status.value, "square", reason)


def _running(builder: Builder, limits: Limits, reason: str) -> State:
    if builder.desired is Desired.STOPPED:
        return _going_on("stopping", sentence(builder.cause.reason))
    if builder.asleep_since is not None:
        return State("frozen", "frozen", "snowflake", f"{_idle(limits)} Goes on at the next visit.")
    if not builder.settled:
        return _going_on("starting", sentence(builder.cause.reason))
    return State("running", "running", "", f"{reason} {_next(builder, limits)}".strip())


def _going_on(word: str, why: str) -> State:
    return State("creating", word, "loader-circle", why, turns=True)


def _stopped(builder: Builder, reason: str) -> State:
    if builder.desired is Desired.RUNNING:
        return _going_on("starting", sentence(builder.cause.reason))
    if builder.stop_kind is StopKind.IDLE:
        return State("stopped", "asleep", "moon", f"{reason} Wakes on the next visit.")
    if builder.stop_kind is StopKind.CAP:
        return State("held", "stopped", "hand", f"{reason} It stays stopped until the cap allows it again.")
    return State("stopped", "stopped", "square", f"{reason} It stays stopped until you start it.")


def _idle(limits: Limits) -> str:
    return f"Idle for {duration(limits.freeze_after)}."


def _next(builder: Builder, limits: Limits) -> str:
    if not builder.auto_stop_interval:
        return "Never sleeps."
    if limits.freeze_after:
        return f"Freezes after {duration(limits.freeze_after)} without a visitor."
    return f"Stops after {duration(builder.auto_stop_interval * 60)} without a visitor."
