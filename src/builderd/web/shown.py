"""Values as people read them: money, sizes, times, sentences; events and states of builders in words."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from math import ceil, floor, log10
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from builderd.builders.lists import BuilderLife
from builderd.builders.model import Builder, Desired, Status, StopKind, is_settled
from builderd.events.model import Event
from builderd.tokens.limits import Limits

SYMBOLS = {"EUR": "€", "USD": "$", "GBP": "£"}
UNITS = ("B", "kB", "MB", "GB", "TB")


def money(amount: Decimal | float, currency: str) -> str:
    """Return ``€4.12``, or ``4.12 CHF`` for a currency without a sign of its own."""
    sign = SYMBOLS.get(currency)
    return f"{sign}{amount:,.2f}" if sign else f"{amount:,.2f} {currency}"


def rate(amount: Decimal | float, currency: str) -> str:
    """Return an hourly rate, with four digits."""
    sign = SYMBOLS.get(currency)
    return f"{sign}{amount:.4f} / h" if sign else f"{amount:.4f} {currency} / h"


def size(count: float | None) -> str:
    """Return ``18.4 MB``; units are powers of 1024, as in the settings."""
    if count is None:
        return "unknown"
    value, unit = float(count), 0
    while value >= 1000 and unit < len(UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} {UNITS[unit]}" if unit == 0 or value >= 100 else f"{value:.1f} {UNITS[unit]}"


def duration(seconds: float | timedelta) -> str:
    """Return ``0.4 s``, ``12 s``, ``4 min 12 s`` or ``3 h 5 min``."""
    value = seconds.total_seconds() if isinstance(seconds, timedelta) else seconds
    if value < 10:
        return f"{value:.1f} s"
    if value < 60:
        return f"{value:.0f} s"
    minutes, left = divmod(int(value), 60)
    if minutes < 60:
        return f"{minutes} min {left} s" if left else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def ago(time: datetime, now: datetime) -> str:
    """Return ``now``, ``4 s ago``, ``6 min ago``, ``3 h ago``, ``2 days ago`` or ``in 3 h``."""
    seconds = int((now - time).total_seconds())
    if -2 < seconds < 2:
        return "now"
    text = _span(abs(seconds))
    return f"{text} ago" if seconds > 0 else f"in {text}"


def _span(seconds: int) -> str:
    for length, unit in ((86_400, "day"), (3_600, "h"), (60, "min")):
        if seconds >= length * (2 if unit == "day" else 1):
            number = seconds // length
            return f"{number} {unit}{'s' if unit == 'day' and number != 1 else ''}"
    return f"{seconds} s"


def iso(time: datetime) -> str:
    """Return the time for a ``datetime`` attribute."""
    return time.isoformat().replace("+00:00", "Z")


def clock(time: datetime) -> str:
    """Return the time of day, in UTC; the page's script shows it in the reader's own zone."""
    return f"{time:%H:%M:%S}"


def day(time: datetime) -> str:
    return f"{time:%A, %-d %B}"


def sentence(text: str) -> str:
    """Return a text that begins with a capital letter, unless with the name of a file, and ends with a full stop."""
    text = text.strip()
    if not text:
        return ""
    is_name = not set(text.split()[0][:-1]).isdisjoint("._/")
    return (text[0] if is_name else text[0].upper()) + text[1:] + ("" if text[-1] in ".!?:…" else ".")


#: Where the reason of a failure begins to quote lines.
_QUOTED = re.compile(r"\s*Its last lines:\n|\n(?=error: |npm error )")


def without_lines(reason: str) -> str:
    """Return the reason of a failure without the last lines of the app or the installer."""
    return _QUOTED.split(reason)[0]


def host(url: str) -> str:
    """Return a URL's host and port."""
    return urlsplit(url).netloc


def path(text: str) -> str:
    """Return a path as a part of a URL."""
    return quote(text, safe="/")


def number(value: float) -> str:
    """Return a number with commas, and without needless decimals."""
    return f"{value:,.0f}" if value == int(value) else f"{value:,.2f}"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


_SHOWN = (money, rate, size, duration, ago, iso, clock, day, sentence, without_lines, host, path, number, plural)
FILTERS: Mapping[str, Callable[..., Any]] = {one.__name__: one for one in _SHOWN}

#: Sentences of the pages, by subject and key.
SENTENCES: Mapping[str, Mapping[str, str]] = tomllib.loads(Path(__file__).with_name("texts.toml").read_text())
#: What a page says once after a change, and names of the stages of a deployment.
MESSAGES, STAGES = SENTENCES["messages"], SENTENCES["stages"]


def event_text(event: Event) -> str:
    """Return what happened, without a full stop."""
    details, first = event.details, event.reason.split("\n")[0]
    if event.type in ("stage.started", "stage.finished") and "stage" in details:
        name = STAGES.get(str(details["stage"]), str(details["stage"]))
        if event.type == "stage.started":
            return f"{name} began"
        seconds = details.get("seconds")
        took = f" in {duration(float(seconds))}" if isinstance(seconds, int | float) else ""
        return f"{name} {'passed' if details.get('ok') else 'failed'}{took}"
    if event.type == "builder.status" and "to" in details:
        return f"Is {details['to']} now: {first}" if first else f"Is {details['to']} now"
    text = first or SENTENCES["events"].get(event.type) or event.type.replace(".", " ").replace("_", " ")
    return sentence(text).removesuffix(".")


def is_reachable(status: Status) -> bool:
    """Return whether the URL leads to the app, or to what says when it runs again: not before it was up."""
    return status not in (Status.CREATING, Status.FAILED)


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
    own: dict[str, Any] = {"cause_reason": builder.cause.reason, "candidate": builder.candidate_version}
    same: dict[str, Any] = {name: getattr(builder, name) for name in BuilderLife._fields if name not in own}
    return state_in_words(BuilderLife(**same, **own), limits)


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
        return State(
            "frozen", "frozen", "snowflake", f"Idle for {duration(limits.freeze_after)}. Goes on at the next visit."
        )
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
        return State("capped", "stopped", "hand", f"{reason} It stays stopped until the cap allows it again.")
    return State("stopped", "stopped", "square", f"{reason} It stays stopped until you start it.")


def _next(life: BuilderLife, limits: Limits) -> str:
    if not life.auto_stop_interval:
        return "Never sleeps."
    if limits.freeze_after:
        return f"Freezes after {duration(limits.freeze_after)} without a visitor."
    return f"Stops after {duration(life.auto_stop_interval * 60)} without a visitor."


#: Size of a sparkline, in pixels of its own.
WIDTH, HEIGHT = 104.0, 24.0
#: Width of a bar with its gap, the gap, the height of a chart of bars, and of its lowest bar.
SLOT, GAP, TALL, LEAST = 20.0, 1.6, 150.0, 1.0


def spark_line(values: Sequence[float | None], most: float | None = None) -> str:
    """Return the path of a line through the values; gaps (None) stay gaps."""
    return "".join("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in run) for run in _points(values, most))


def spark_area(values: Sequence[float | None], most: float | None = None) -> str:
    """Return the path of the area below that line."""
    areas = []
    for run in _points(values, most):
        line = "L".join(f"{x:.1f} {y:.1f}" for x, y in run)
        areas.append(f"M{line}L{run[-1][0]:.1f} {HEIGHT:g}L{run[0][0]:.1f} {HEIGHT:g}Z")
    return "".join(areas)


def _points(values: Sequence[float | None], most: float | None) -> list[list[tuple[float, float]]]:
    top = max([most or 0, *(value for value in values if value is not None)], default=0) or 1
    step = WIDTH / max(len(values) - 1, 1)
    runs: list[list[tuple[float, float]]] = [[]]
    for index, value in enumerate(values):
        if value is None:
            if runs[-1]:
                runs.append([])
            continue
        runs[-1].append((index * step, HEIGHT - 1 - value / top * (HEIGHT - 2)))
    return [run for run in runs if len(run) > 1]


@dataclass(frozen=True, slots=True)
class Bars:
    """Bars of a chart, each with its left edge, top and height; ``ticks``: figures of its lines, from the top."""

    width: float
    bar: float
    bars: tuple[tuple[float, float, float], ...]
    ticks: tuple[float, ...]


def bars(values: Sequence[float], places: int) -> Bars:
    """Return a chart of these values at the first of ``places``, below a round figure."""
    most = max(values, default=0)
    tick = _tick(most / 2)
    top = tick * max(1, ceil(most / tick - 1e-9))
    # What cost anything is seen.
    heights = [max(LEAST, TALL * value / top) if value else 0.0 for value in values]
    lines = round(top / tick)
    return Bars(
        width=places * SLOT,
        bar=SLOT - GAP,
        bars=tuple(
            (index * SLOT + GAP / 2, round(TALL - high, 1), round(high, 1)) for index, high in enumerate(heights)
        ),
        ticks=tuple((lines - line) * tick for line in range(lines + 1)),
    )


def _tick(least: float) -> float:
    """Return the lowest of 1, 2, 5, 10 … (and their tenths and hundredths) that is not below."""
    power = 10.0 ** floor(log10(least)) if least > 0.01 else 0.01
    return next(step * power for step in (1, 2, 5, 10) if step * power >= least * (1 - 1e-9))


def share(part: float, whole: float) -> float:
    """Return a part of a whole as a width from 0 to 100."""
    return round(max(0.0, min(100.0, 100 * part / whole)), 1) if whole else 0.0
