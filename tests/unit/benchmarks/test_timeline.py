"""The chart of ``script/bench timeline`` shows when stages go on, cut at the call's begin and at the first 200."""

from __future__ import annotations

import asyncio
import sys
from types import ModuleType

import pytest
from benchmarks.timeline import STAGES, Span, _replace, chart

REVIEW, ROUTE = "review", "route in the proxy"


def _lines(*spans: Span) -> list[str]:
    return chart(spans, 10.0, 10.1, 10).splitlines()[1:]  # 100 ms, 10 of them a character


def test_line_tells_begin_and_end_and_shows_each_part() -> None:
    assert _lines(Span(REVIEW, 10.0, 10.02), Span(REVIEW, 10.05, 10.069)) == [
        "      0.0    69.0  ██···██···  review",
    ]


def test_stages_stand_in_their_order_and_visits_of_the_benchmark_last() -> None:
    spans = (Span("visit", 10.09, 10.1), Span(ROUTE, 10.05, 10.06), Span(REVIEW, 10.0, 10.01))
    assert [line.rsplit("  ", 1)[1] for line in _lines(*spans)] == [REVIEW, ROUTE, "visit"]


def test_stage_outside_the_call_is_left_out() -> None:
    assert _lines(Span(REVIEW, 9.0, 9.9), Span(REVIEW, 10.2, 10.3)) == []


def test_stage_that_outlasts_the_first_answer_ends_later() -> None:
    assert _lines(Span(REVIEW, 9.99, 10.5)) == ["      0.0   later  ██████████  review"]


def test_short_stage_is_seen() -> None:
    assert "·█·" in _lines(Span(REVIEW, 10.011, 10.0112))[0]


@pytest.mark.parametrize(("module", "path"), [(module, path) for _, module, path in STAGES])
def test_each_stage_is_a_coroutine_function_of_the_service(module: str, path: str) -> None:
    found: object = __import__(f"builderd.{module}", fromlist=["_"])
    for name in path.split("."):
        found = getattr(found, name)
    assert asyncio.iscoroutinefunction(found)


def test_function_is_noted_where_it_was_imported_by_name_and_still_fails_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def work(fails: bool) -> str:
        if fails:
            raise ValueError
        return "done"

    home, other = ModuleType("home"), ModuleType("other")
    for module in (home, other):
        module.work = work  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
    spans: list[Span] = []
    _replace(home, ["work"], "stage", spans)
    assert asyncio.run(other.work(fails=False)) == "done"
    with pytest.raises(ValueError):
        asyncio.run(home.work(fails=True))
    assert [(one.stage, one.end >= one.begin) for one in spans] == [("stage", True)] * 2
