"""Values as people read them: money, sizes, times, sentences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import quote, urlsplit

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
    """Return a text that begins with a capital letter and ends with a full stop."""
    text = text.strip()
    if not text:
        return ""
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?:…" else ".")


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


FILTERS: Mapping[str, Callable[..., Any]] = {
    "money": money,
    "rate": rate,
    "size": size,
    "duration": duration,
    "ago": ago,
    "iso": iso,
    "clock": clock,
    "day": day,
    "sentence": sentence,
    "host": host,
    "path": path,
    "number": number,
    "plural": plural,
}
