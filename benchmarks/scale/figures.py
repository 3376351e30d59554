"""Medians, ratios and the table of ``script/bench scale``, from what its rounds measured."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

Row = dict[str, Any]
#: One figure for each round by name. Those of one database and round were taken one right after the other.
Rounds = Mapping[str, Sequence[float]]

T = TypeVar("T")

#: Figures that must not grow with the rows.
COMPARED = (
    *("start, ms", "start and stop, CPU ms", "start and stop, CPU ms of the database's server"),
    *("create, ms", "create and delete, CPU ms", "create and delete, CPU ms of the database's server"),
)


def order(subjects: Sequence[T], number: int) -> Sequence[T]:
    """Return the order of a round: each is first, second and last equally often, and follows each other one."""
    shift = number % len(subjects)
    turned = [*subjects[shift:], *subjects[:shift]]
    return turned[::-1] if number // len(subjects) % 2 else turned


def medians(rounds: Rounds) -> Row:
    return {name: statistics.median(values) for name, values in rounds.items()}


def ratios(rounds: Rounds, of_fewest: Rounds) -> dict[str, list[float]]:
    """Return how many times a figure is that of the fewest builders, for each round."""
    names = [name for name in COMPARED if name in rounds and all(of_fewest[name])]
    return {name: [a / b for a, b in zip(rounds[name], of_fewest[name], strict=True)] for name in names}


def compare(results: Sequence[Row]) -> None:
    """Add to each result of one database its ratios to that of the fewest builders."""
    fewest = min(results, key=lambda one: one["builders"])
    for result in results:
        if result is not fewest:
            result["ratios"] = ratios(result["rounds"], fewest["rounds"])


def table(results: Sequence[Row]) -> str:
    """Return the table of BENCHMARKS.md: a column for each service, milliseconds beside the CPU time of the service."""
    heads = [f"{NAMES[result['database']]}: {result['builders']:,}" for result in results]
    lines = [f"| what | {' | '.join(heads)} | goal | met |", "|---" * (len(results) + 3) + "|"]
    for title, cell, goal, limit in ROWS:
        cells = [cell(result) for result in results]
        met = "" if limit is None else "yes" if all(map(limit, results)) else "**no**"
        if any(cells):
            lines.append(f"| {title} | {' | '.join(cells)} | {goal} | {met} |")
    return "\n".join(lines)


def spread(results: Sequence[Row]) -> str:
    """Return the least and the greatest ratio of a round, by figure and service: what the median is worth."""
    return "\n".join(
        f"{NAMES[result['database']]}: {result['builders']:,}: {name}: {min(found):.2f} to {max(found):.2f} x"
        for result in results
        for name, found in result.get("ratios", {}).items()
    )


def _seconds(name: str) -> Callable[[Row], str]:
    return lambda result: f"{result[name]:.1f}"


def _ms(wall: str, cpu: str) -> Callable[[Row], str]:
    """Return the cell of a figure, with its ratio if it may not grow."""

    def cell(result: Row) -> str:
        growth = ""
        if wall in result.get("ratios", {}):
            growth = f", {_growth(result, wall):.2f} x ({_growth(result, cpu):.2f} x)"
        return f"{result[wall]:.0f} ({result[cpu]:.0f}){growth}"

    return cell


def _of_server(name: str) -> Callable[[Row], str]:
    def cell(result: Row) -> str:
        if name not in result:
            return ""
        growth = f", {_growth(result, name):.2f} x" if name in result.get("ratios", {}) else ""
        return f"{result[name]:.0f}{growth}"

    return cell


def _growth(result: Row, name: str) -> float:
    return float(statistics.median(result["ratios"][name]))


def _at_most(name: str, most: float) -> Callable[[Row], bool]:
    return lambda result: bool(result[name] <= most)


def _grows_by(name: str, most: float) -> Callable[[Row], bool]:
    return lambda result: "ratios" not in result or _growth(result, name) <= most


NAMES = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}
#: Title, cell, goal as text, and whether a result meets it.
ROWS: Sequence[tuple[str, Callable[[Row], str], str, Callable[[Row], bool] | None]] = (
    (
        "service start, s (CPU, s)",
        lambda one: f"{one['service start, s']:.1f} ({one['CPU of start, s']:.1f})",
        "",
        None,
    ),
    ("first create → 201 after ready, s", _seconds("first create, s"), "≤ 1.5", _at_most("first create, s", 1.5)),
    ("CPU in the 30 s after ready, s", _seconds("CPU in 30 s, s"), "≤ 3", _at_most("CPU in 30 s, s", 3)),
    ("CPU of 10 idle s, s", _seconds("CPU of 10 idle s, s"), "", None),
    (
        "start → 200, ms (start and stop, CPU ms)",
        _ms("start, ms", "start and stop, CPU ms"),
        "≤ 1.15 x",
        _grows_by("start, ms", 1.15),
    ),
    (
        "create → 201, ms (create and delete, CPU ms)",
        _ms("create, ms", "create and delete, CPU ms"),
        "≤ 1.15 x",
        _grows_by("create, ms", 1.15),
    ),
    (
        "start and stop, CPU ms of PostgreSQL",
        _of_server("start and stop, CPU ms of the database's server"),
        "",
        None,
    ),
    (
        "create and delete, CPU ms of PostgreSQL",
        _of_server("create and delete, CPU ms of the database's server"),
        "",
        None,
    ),
    (
        "`GET /builders/spending`, ms (CPU ms)",
        _ms("spending, ms", "spending, CPU ms"),
        "≤ 150",
        _at_most("spending, ms", 150),
    ),
    ("list of 100: p50, ms (CPU ms)", _ms("list, p50 ms", "list, CPU ms"), "", None),
    ("list of 100: p99, ms", lambda one: f"{one['list, p99 ms']:.0f}", "≤ 50", _at_most("list, p99 ms", 50)),
)
