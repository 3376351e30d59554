"""The zoo's measurements as a table in markdown."""

from __future__ import annotations

from collections.abc import Collection

from tests.acceptance.zoo.keeper import Row


def markdown(rows: Collection[Row]) -> str:
    """Return the table of measured apps, in their order."""
    names = ("app", "kind", "cold s", "cached s", "layer MB", "disk MB", "resources", "load", "verdict")
    head = f"| {' | '.join(names)} |\n|{'---|' * len(names)}\n"
    return head + "".join(_line(row) for row in rows)


def _line(row: Row) -> str:
    cells = (
        row.name,
        row.kind,
        _number(row.cold),
        _number(row.cached),
        f"{row.layer_mb:.0f}",
        f"{row.disk_mb:.1f}",
        row.resources or "default",
        f"{row.load:.0f}",
        row.verdict,
    )
    return f"| {' | '.join(cells)} |\n"


def _number(seconds: float) -> str:
    return f"{seconds:.1f}" if seconds else "-"
