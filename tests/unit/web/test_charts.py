"""Charts of bars have round figures at their lines, bars to scale, and show every cost."""

from __future__ import annotations

import pytest

from builderd.web.charts import GAP, LEAST, SLOT, TALL, bars


@pytest.mark.parametrize(
    ("most", "ticks"),
    [
        (0, (0.01, 0)),
        (0.01, (0.01, 0)),
        (0.03, (0.04, 0.02, 0)),
        (1.48, (2, 1, 0)),
        (2, (2, 1, 0)),
        (2.01, (4, 2, 0)),
        (731, (1000, 500, 0)),
    ],
)
def test_chart_of_bars_has_round_lines_at_and_above_its_values(most: float, ticks: tuple[float, ...]) -> None:
    assert bars([0, most], 30).ticks == pytest.approx(ticks)


def test_bars_stand_on_the_ground_and_leave_room_for_days_to_come() -> None:
    chart = bars([1, 0, 2, 0.0001], 30)
    assert (chart.width, chart.bar) == (30 * SLOT, SLOT - GAP)
    assert [round(left - GAP / 2) for left, _, _ in chart.bars] == [0, 20, 40, 60]
    assert [high for _, _, high in chart.bars] == [TALL / 2, 0, TALL, LEAST]
    assert all(top + high == TALL for _, top, high in chart.bars)
    assert bars([], 31).bars == ()
