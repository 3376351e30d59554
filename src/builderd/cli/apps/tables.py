"""Tables for a terminal, and text from elsewhere that is safe to show there."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, TextIO

import click

#: Least columns in which a text is wrapped: in fewer, it is left to the terminal.
LEAST_COLUMNS = 20
#: Sequences that set colour and style of the text after them.
COLOUR, RESET = re.compile(r"(\x1b\[[0-9;]*m)"), "\x1b[0m"


#: Columns of a table: their heads, and what they show of a row: an attribute, a format of one, or a function's result.
Columns = Mapping[str, str | Callable[[Any], Any]]


def aligned(rows: Sequence[Any], columns: Columns, width: int | None = None) -> list[str]:
    """Return a table's lines; the last column is not padded, and wrapped at spaces to fit into ``width``."""
    cells = [list(columns), *([_cell(_value(row, shown)) for shown in columns.values()] for row in rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(columns) - 1)]
    indent = sum(widths) + 2 * len(widths)
    lines = []
    for *row, last in cells:
        begin = "".join(f"{cell:<{size}}  " for cell, size in zip(row, widths, strict=True))
        pieces = _wrapped(last, None if width is None else width - indent)
        lines += [f"{begin}{pieces[0]}".rstrip(), *(f"{'':<{indent}}{piece}" for piece in pieces[1:])]
    return [click.style(lines[0], bold=True), *lines[1:]]


def _wrapped(text: str, width: int | None) -> list[str]:
    """Return the lines of a text; a longer word, such as a URL, stays whole."""
    if width is None or width < LEAST_COLUMNS or len(text) <= width:
        return [text]
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]


def printable(text: str) -> str:
    """Return text from elsewhere without what moves the cursor, sets a title or turns the direction of a line."""
    return "".join(one if one.isprintable() or one in "\n\t" else "\N{REPLACEMENT CHARACTER}" for one in text)


def shown(text: str, out: TextIO) -> str:
    """Return text of an app, a file or a service as a stream gets it: as it is, but for a terminal without controls.

    Colours stay there. Others could set the clipboard (OSC 52) or the title, or write over what was shown before.
    """
    if not out.isatty():
        return text
    parts = COLOUR.split(text.replace("\r\n", "\n"))
    return "".join(part if at % 2 else printable(part) for at, part in enumerate(parts)) + RESET * (len(parts) > 1)


def _value(row: Any, shown: str | Callable[[Any], Any]) -> Any:
    if not isinstance(shown, str):
        return shown(row)
    return shown.format(row) if "{" in shown else attrgetter(shown)(row)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return printable(",".join(value))
    if hasattr(value, "strftime"):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    return printable(next(iter(str(value).splitlines()), ""))
