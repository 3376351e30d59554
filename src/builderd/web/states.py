"""A builder's state as a sentence: a shape, a word, why, and what happens next."""

from __future__ import annotations

from dataclasses import dataclass

from builderd.domain.builders import Builder, Desired, Status, StopKind, is_settled
from builderd.services.limits import Limits
from builderd.store.builder_lists import BuilderLife
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
    return state_in_words(_life(builder), limits)


def _life(builder: Builder) -> BuilderLife:
    return BuilderLife(
        name=builder.name,
        desired=builder.desired,
        status=builder.status,
        status_reason=builder.status_reason,
        cause_reason=builder.cause.reason,
        version=builder.version,
        candidate=builder.candidate.version if builder.candidate else None,
        asleep_since=builder.asleep_since,
        stop_kind=builder.stop_kind,
        auto_stop_interval=builder.auto_stop_interval,
        generation=builder.generation,
        observed_generation=builder.observed_generation,
    )


def state_in_words(life: BuilderLife, limits: Limits) -> State:
    """Return the state of a builder with these fields in words for people."""
    if life.desired is Desired.DELETED:
        return _going_on("deleting", "Its apps stop, and its files are removed.")
    if life.candidate is not None:
        serves = f" Version {life.version} serves on." if life.status is Status.RUNNING else ""
        return _going_on("deploying", f"Version {life.candidate} is being deployed.{serves}")
    reason = sentence(life.status_reason)
    match life.status:
        case Status.CREATING:
            return _going_on("deploying", reason or f"Version {life.version} is being deployed.")
        case Status.RUNNING:
            return _running(life, limits, reason)
        case Status.STOPPED:
            return _stopped(life, reason)
        case Status.FAILED:
            return State("failed", "failed", "octagon-x", reason.split("\n")[0])
        case Status.COMPLETED:
            return State("completed", "completed", "circle-check", f"{reason} It runs again when you start it.")
    return State("stopped", life.status.value, "square", reason)


def _running(life: BuilderLife, limits: Limits, reason: str) -> State:
    if life.desired is Desired.STOPPED:
        return _going_on("stopping", sentence(life.cause_reason))
    if life.asleep_since is not None:
        return State("frozen", "frozen", "snowflake", f"{_idle(limits)} Goes on at the next visit.")
    if not is_settled(life.desired, life.status, observed=life.observed_generation == life.generation):
        return _going_on("starting", sentence(life.cause_reason))
    return State("running", "running", "", f"{reason} {_next(life, limits)}".strip())


def _going_on(word: str, why: str) -> State:
    return State("creating", word, "loader-circle", why, turns=True)


def _stopped(life: BuilderLife, reason: str) -> State:
    if life.desired is Desired.RUNNING:
        return _going_on("starting", sentence(life.cause_reason))
    if life.stop_kind is StopKind.IDLE:
        return State("stopped", "asleep", "moon", f"{reason} Wakes on the next visit.")
    if life.stop_kind is StopKind.CAP:
        return State("held", "stopped", "hand", f"{reason} It stays stopped until the cap allows it again.")
    return State("stopped", "stopped", "square", f"{reason} It stays stopped until you start it.")


def _idle(limits: Limits) -> str:
    return f"Idle for {duration(limits.freeze_after)}."


def _next(life: BuilderLife, limits: Limits) -> str:
    if not life.auto_stop_interval:
        return "Never sleeps."
    if limits.freeze_after:
        return f"Freezes after {duration(limits.freeze_after)} without a visitor."
    return f"Stops after {duration(life.auto_stop_interval * 60)} without a visitor."
