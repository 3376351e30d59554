"""Stages of a deployment as a small time chart, from the events of its version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from builderd.domain.events import Event
from builderd.domain.versions import Version, VersionStatus
from builderd.web.telling import STAGES

#: What each stage does, while nothing better is known of it.
NOTES = {
    "review": "Reads the code before any of it runs.",
    "install": "Installs its dependencies, or takes the layer of an app with the same ones.",
    "build": "Runs the build command, or takes what it made of the same files before.",
    "release": "Runs the release command once, on the disk of the new version.",
    "start": "Starts the app and waits until it listens.",
    "qa": "Asks whether it answers and stays up. The report with screenshots follows later.",
}
#: Least share of the chart that a stage is drawn with.
LEAST = 0.8


@dataclass(frozen=True, slots=True)
class Stage:
    """``kind``: pass, fail, now, todo or skip. ``x`` and ``width`` place it in a chart of 100 units."""

    name: str
    kind: str
    icon: str
    seconds: float | None
    note: str
    x: float = 0
    width: float = 0
    started: datetime | None = None


def stages_of(version: Version, events: Sequence[Event], now: datetime) -> Sequence[Stage]:
    """Return its stages. ``events`` are those of the version, oldest first."""
    settings = version.settings
    absent = {name for name, command in (("build", settings.build), ("release", settings.release)) if not command}
    spans = {name: _span(name, events) for name in STAGES if name not in absent}
    begin = min((start for start, _, _ in spans.values() if start), default=version.created_at)
    is_over = version.status is not VersionStatus.PENDING
    last = max((end or (begin if is_over else now) for _, end, _ in spans.values()), default=now)
    whole = max((last - begin).total_seconds(), 0.1)
    return [_stage(name, version, spans[name], TimeAxis(begin, whole, now)) for name in spans]


@dataclass(frozen=True, slots=True)
class TimeAxis:
    """The chart's time: where it begins, its length in seconds, and the present time."""

    begin: datetime
    whole: float
    now: datetime

    def place(self, start: datetime, end: datetime | None) -> tuple[float, float]:
        """Return where a bar begins and its width, of 100."""
        x = min(100.0, 100 * max((start - self.begin).total_seconds(), 0) / self.whole)
        return x, max(LEAST, min(100 - x, 100 * ((end or self.now) - start).total_seconds() / self.whole))


Span = tuple[datetime | None, datetime | None, Event | None]


def _span(name: str, events: Sequence[Event]) -> Span:
    """Return the last start and end of the stage, and the event that ended it."""
    started: datetime | None = None
    ended: Event | None = None
    for event in events:
        if event.details.get("stage") != name:
            continue
        if event.type == "stage.started":
            started, ended = event.time, None
        elif event.type == "stage.finished":
            ended = event
    if ended is not None and started is None:
        # Not every stage says that it began.
        started = ended.time - timedelta(seconds=float(ended.details.get("seconds", 0)))
    return started, ended.time if ended else None, ended


def _stage(name: str, version: Version, span: Span, axis: TimeAxis) -> Stage:
    started, end, ended = span
    is_over = version.status is not VersionStatus.PENDING
    text = STAGES[name]
    skipped = (name == "review" and version.settings.skip_review) or (name == "qa" and version.settings.skip_qa)
    if skipped and started is None:
        return Stage(text, "skip", "minus", None, "Left out.")
    if ended is None and (started is None or is_over):
        return Stage(
            text, "todo", "minus" if is_over else "circle-dashed", None, "Not reached." if is_over else NOTES[name]
        )
    seconds = (
        float(ended.details.get("seconds", 0)) if ended else (axis.now - started).total_seconds() if started else 0
    )
    x, width = axis.place(started or (ended.time if ended else axis.begin), end)
    if ended is None:
        return Stage(text, "now", "loader-circle", seconds, NOTES[name], round(x, 1), round(width, 1), started)
    ok = bool(ended.details.get("ok"))
    note = ended.reason if ended.reason != name else NOTES[name]
    kind, icon = ("pass", "circle-check") if ok else ("fail", "octagon-x")
    return Stage(
        text, kind, icon, seconds, note.split("\n")[0], round(min(x, 100 - LEAST), 1), round(width, 1), started
    )


def events_of(version: Version, events: Sequence[Event]) -> Sequence[Event]:
    """Return the events of this version among a builder's, newest first; oldest first.

    Stages do not name their version: they belong to the version that was made last before them.
    """
    found: list[Event] = []
    for event in reversed(events):
        begins = event.type in ("builder.created", "version.created")
        if begins:
            number = event.details.get("version", 1)
            if number == version.number:
                found = []
            elif found:
                break
        if begins and event.details.get("version", 1) != version.number:
            continue
        if begins or found:
            found.append(event)
    return found
