"""Ratios of ``script/bench scale`` compare what was measured in one round, and its table says which goals are met."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from benchmarks.scale.figures import compare, medians, order, ratios, spread, table

CPU = "start and stop, CPU ms"


def _result(builders: int, starts: list[float], **more: Any) -> dict[str, Any]:
    rounds = {"start, ms": starts, CPU: [50.0] * len(starts), "create, ms": [200.0] * len(starts)}
    rounds |= {"create and delete, CPU ms": [80.0] * len(starts)}
    alone = {"service start, s": 1, "CPU of start, s": 0.5, "first create, s": 0.4, "CPU in 30 s, s": 1}
    others = {"CPU of 10 idle s, s": 0.2, "spending, ms": 20, "spending, CPU ms": 9, "list, CPU ms": 8}
    lists = {"list, p50 ms": 9, "list, p99 ms": 14}
    figures = {**alone, **others, **lists, **medians(rounds), "rounds": rounds}
    return {"builders": builders, "database": "sqlite", **figures, **more}


def _line(text: str, title: str) -> list[str]:
    (found,) = (line for line in text.splitlines() if line.startswith(f"| {title}"))
    return [cell.strip() for cell in found.strip("|").split("|")]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_each_service_is_at_each_place_of_a_round_equally_often(number: int) -> None:
    turns = [order(range(number), at) for at in range(2 * number)]
    assert Counter(enum for turn in turns for enum in enumerate(turn)) == {
        (place, subject): 2 for place in range(number) for subject in range(number)
    }


def test_no_service_always_follows_the_same_one() -> None:
    followed = Counter(pair for at in range(6) for pair in pairwise(order("abc", at)))
    assert followed == dict.fromkeys([(one, two) for one in "abc" for two in "abc" if one != two], 2)


def test_speed_that_changes_between_rounds_leaves_no_growth() -> None:
    speed = [1.0, 1.5, 0.7, 1.2]
    few, many = ({"start, ms": [base * one for one in speed]} for base in (100.0, 104.0))
    assert ratios(many, few)["start, ms"] == pytest.approx([1.04] * 4)


def test_growth_is_the_median_of_ratios_not_the_ratio_of_medians() -> None:
    few, many = _result(5, [100, 200, 400]), _result(10_000, [120, 240, 100])
    compare([few, many])
    assert _line(table([few, many]), "start → 200")[2] == "120 (50), 1.20 x (1.00 x)"  # of the medians: 0.6 x


def test_goal_is_missed_by_one_service_that_grows() -> None:
    results = [_result(5, [100.0]), _result(10_000, [109.0]), _result(100_000, [111.0])]
    compare(results)
    assert _line(table(results[:2]), "start → 200")[-2:] == ["≤ 1.1 x", "yes"]
    assert _line(table(results), "start → 200")[-1] == "**no**"


def test_fewest_builders_have_no_ratio_wherever_they_stand() -> None:
    results = [_result(10_000, [150.0]), _result(5, [100.0])]
    compare(results)
    assert _line(table(results), "start → 200")[1:3] == ["150 (50), 1.50 x (1.00 x)", "100 (50)"]


def test_figure_without_cpu_of_a_server_is_compared_by_the_others() -> None:
    of_server = f"{CPU} of the database's server"
    without, few, many = _result(5, [100.0]), _result(5, [100.0]), _result(9, [100.0])
    for result, value in ((few, 20.0), (many, 22.0)):
        result["rounds"][of_server] = [value]
        result |= {of_server: value, "database": "postgresql"}
    compare([few, many])
    assert "PostgreSQL" not in table([without])
    assert _line(table([without, few, many]), "start and stop, CPU ms of PostgreSQL")[1:4] == ["", "20", "22, 1.10 x"]


def test_spread_names_the_least_and_the_greatest_ratio() -> None:
    results = [_result(5, [100.0, 100.0, 100.0]), _result(10_000, [90.0, 130.0, 105.0])]
    compare(results)
    assert "SQLite: 10,000: start, ms: 0.90 to 1.30 x" in spread(results).splitlines()
