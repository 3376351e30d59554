"""Charts as SVG paths, drawn on the server: sizes are attributes, since the page's policy allows no inline style."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

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
