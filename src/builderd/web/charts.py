"""Charts as SVG paths, drawn on the server: sizes are attributes, since the page's policy allows no inline style."""

from __future__ import annotations

from collections.abc import Sequence

#: Size of a sparkline, in pixels of its own.
WIDTH, HEIGHT = 104.0, 24.0


def spark_line(values: Sequence[float | None], most: float | None = None) -> str:
    """Return the path of a line through the values; gaps (None) stay gaps."""
    return "".join(_runs(values, most))


def spark_area(values: Sequence[float | None], most: float | None = None) -> str:
    """Return the path of the area below that line."""
    areas = []
    for run in _points(values, most):
        line = "L".join(f"{x:.1f} {y:.1f}" for x, y in run)
        areas.append(f"M{line}L{run[-1][0]:.1f} {HEIGHT:g}L{run[0][0]:.1f} {HEIGHT:g}Z")
    return "".join(areas)


def _runs(values: Sequence[float | None], most: float | None) -> list[str]:
    return ["M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in run) for run in _points(values, most)]


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


def share(part: float, whole: float) -> float:
    """Return a part of a whole as a width from 0 to 100."""
    return round(max(0.0, min(100.0, 100 * part / whole)), 1) if whole else 0.0
