"""Costs to the cent: seconds times rate, whatever way the time is cut."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.domain.samples import BUILDER, NOW, SECOND, TENANT

from builderd.domain.prices import Billing, Prices, Segment, Sum, cents, rate_digits, total
from builderd.domain.resources import Resources

HOUR = timedelta(hours=1)
RATE = Decimal("0.1965")
times = st.datetimes(NOW.replace(tzinfo=None), NOW.replace(tzinfo=None) + timedelta(days=400)).map(
    lambda time: time.replace(tzinfo=NOW.tzinfo)
)


def segment(start: datetime, end: datetime | None, billing: Billing = Billing.RUNNING, rate: Decimal = RATE) -> Segment:
    return Segment(TENANT, BUILDER, billing, start, end, rate)


def test_the_contracts_own_example() -> None:
    assert Prices().hourly_rate(Resources(1, 1, 3), Billing.RUNNING) == RATE


@pytest.mark.parametrize(
    ("resources", "billing", "rate"),
    [
        (Resources(1, 1, 3), Billing.STOPPED, "0.0165"),
        (Resources(1, 1, 3), Billing.FROZEN, "0.0765"),
        (Resources(0.25, 0.125, 1), Billing.RUNNING, "0.0430"),
        (Resources(8, 16, 100), Billing.RUNNING, "2.47"),
        # a binary 0.1 is not a tenth
        (Resources(0.3, 0.7, 1.1), Billing.RUNNING, "0.08405"),
    ],
)
def test_rates_are_exact(resources: Resources, billing: Billing, rate: str) -> None:
    assert Prices().hourly_rate(resources, billing) == Decimal(rate)


def test_own_prices_are_taken() -> None:
    prices = Prices("USD", cpu=Decimal(1), memory=Decimal(2), disk=Decimal(3))
    assert prices.hourly_rate(Resources(1, 1, 1), Billing.RUNNING) == 6


def test_the_shares_that_frozen_ones_pay_are_settings() -> None:
    prices = Prices(frozen_cpu=Decimal("0.25"), frozen_memory=Decimal("0.5"))
    assert prices.hourly_rate(Resources(1, 1, 3), Billing.FROZEN) == Decimal("0.03") + Decimal("0.03") + Decimal(
        "0.0165"
    )


def test_an_hour_of_running_and_an_hour_of_rest() -> None:
    ledger = [
        segment(NOW, NOW + HOUR),
        segment(NOW + HOUR, NOW + 2 * HOUR, Billing.STOPPED, Decimal("0.0165")),
    ]
    spent = total(ledger, NOW + 5 * HOUR)
    assert (spent.hours, spent.money) == (Decimal(1), Decimal("0.2130"))


def test_open_segment_costs_until_now() -> None:
    spent = total([segment(NOW, None)], NOW + 90 * SECOND)
    assert (spent.hours, spent.money) == (Decimal("0.025"), Decimal("0.0049125"))


def test_microseconds_count() -> None:
    assert segment(NOW, NOW + timedelta(days=1, microseconds=1)).seconds(NOW) == Decimal("86400.000001")


def test_only_the_time_asked_for_counts() -> None:
    ledger = [segment(NOW, NOW + 10 * HOUR)]
    later = NOW + 20 * HOUR
    assert total(ledger, later, since=NOW + 9 * HOUR).hours == 1
    assert total(ledger, later, until=NOW + 2 * HOUR).hours == 2
    assert total(ledger, later, since=NOW + 3 * HOUR, until=NOW + 5 * HOUR).hours == 2
    assert total(ledger, later, since=NOW + 11 * HOUR).hours == 0
    assert total([segment(NOW, None)], NOW + HOUR, until=NOW + 9 * HOUR).hours == 1


@given(times, times, times, times, times)
def test_a_cost_is_never_negative(
    start: datetime, end: datetime, now: datetime, since: datetime, until: datetime
) -> None:
    for each in (segment(start, end), segment(start, None)):
        spent = total([each], now, since, until)
        assert spent.hours >= 0
        assert spent.money >= 0


@given(st.lists(st.tuples(times, times), min_size=1, max_size=4), times, st.tuples(times, times, times))
def test_a_span_costs_what_its_parts_cost(
    spans: list[tuple[datetime, datetime]], now: datetime, cuts: tuple[datetime, datetime, datetime]
) -> None:
    first, middle, last = sorted(cuts)
    ledger = [*(segment(min(span), max(span)) for span in spans), segment(spans[0][0], None)]
    whole = total(ledger, now, first, last)
    parts = [total(ledger, now, first, middle), total(ledger, now, middle, last)]
    assert sum(parts, Sum()) == whole


@pytest.mark.parametrize(
    ("amount", "shown"), [("0.004999", "0.00"), ("0.005", "0.01"), ("0.015", "0.02"), ("2.675", "2.68"), ("7", "7.00")]
)
def test_money_is_rounded_half_up_to_cents(amount: str, shown: str) -> None:
    assert str(cents(Decimal(amount))) == shown


def test_rates_are_shown_with_four_digits() -> None:
    assert str(rate_digits(Decimal("0.19645"))) == "0.1965"
