"""Costs to the cent, calendar days and months in UTC, times at which a cap is reached, tables for spreadsheets."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.unit.samples import BUILDER, NOW, SECOND, TENANT

from builderd.core.errors import ValidationFailed
from builderd.core.resources import Resources
from builderd.money.model import (
    DAY,
    MOST_DAYS,
    SECONDS_PER_HOUR,
    Account,
    Billing,
    Cap,
    Prices,
    Segment,
    Spent,
    Sum,
    cap_message,
    cents,
    csv_text,
    day_of,
    days_between,
    lowest,
    month_of,
    months_between,
    next_month,
    rate_digits,
    span_of_days,
    tightest,
    total,
)

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
    ledger = [segment(NOW, NOW + HOUR), segment(NOW + HOUR, NOW + 2 * HOUR, Billing.STOPPED, Decimal("0.0165"))]
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


NOON = datetime(2026, 5, 2, 12, 30, tzinfo=UTC)
MIDNIGHT = datetime(2026, 5, 2, tzinfo=UTC)
LAST = datetime.max.replace(tzinfo=UTC)


def test_day_is_that_of_utc() -> None:
    assert day_of(datetime(2026, 5, 3, 1, tzinfo=timezone(timedelta(hours=2)))) == MIDNIGHT


def test_span_is_split_at_midnights() -> None:
    end = MIDNIGHT + 2 * DAY
    parts = list(days_between(NOON, end))
    assert parts == [(MIDNIGHT, NOON, MIDNIGHT + DAY), (MIDNIGHT + DAY, MIDNIGHT + DAY, end)]
    assert list(days_between(NOON, NOON)) == list(days_between(end, NOON)) == []
    assert list(days_between(LAST - DAY / 2, LAST)) == [(day_of(LAST), LAST - DAY / 2, LAST)]


def test_days_to_come_are_left_out_of_a_span() -> None:
    assert span_of_days(MIDNIGHT - DAY, MIDNIGHT + 9 * DAY, NOON) == (MIDNIGHT - DAY, MIDNIGHT + DAY)
    assert span_of_days(MIDNIGHT - 2 * DAY, MIDNIGHT, NOON) == (MIDNIGHT - 2 * DAY, MIDNIGHT)
    assert span_of_days(MIDNIGHT + 3 * DAY, MIDNIGHT + 9 * DAY, NOON) == (MIDNIGHT + 3 * DAY, MIDNIGHT + 3 * DAY)


@pytest.mark.parametrize("until", [MIDNIGHT, MIDNIGHT - DAY, MIDNIGHT + (MOST_DAYS + 1) * DAY])
def test_empty_and_long_spans_are_refused(until: datetime) -> None:
    with pytest.raises(ValidationFailed):
        span_of_days(MIDNIGHT, until, NOON)
    assert span_of_days(MIDNIGHT, MIDNIGHT + MOST_DAYS * DAY, NOON) == (MIDNIGHT, MIDNIGHT + DAY)


halves = st.datetimes(datetime(2024, 1, 1), datetime(2027, 12, 31)).map(lambda time: time.replace(tzinfo=UTC))


def test_a_month_begins_at_midnight_utc_of_its_first_day() -> None:
    assert month_of(datetime(2028, 2, 29, 23, 59, tzinfo=UTC)) == datetime(2028, 2, 1, tzinfo=UTC)
    ahead = timezone(timedelta(hours=2))
    assert month_of(datetime(2026, 3, 1, 1, 0, tzinfo=ahead)) == datetime(2026, 2, 1, tzinfo=UTC)


def test_after_december_comes_january() -> None:
    assert next_month(datetime(2026, 12, 31, 23, 59, tzinfo=UTC)) == datetime(2027, 1, 1, tzinfo=UTC)
    assert next_month(datetime(2026, 1, 1, tzinfo=UTC)) == datetime(2026, 2, 1, tzinfo=UTC)


@given(halves, halves)
def test_a_span_is_cut_at_months_without_gap_or_overlap(one: datetime, other: datetime) -> None:
    start, end = sorted((one, other))
    parts = list(months_between(start, end))
    assert parts[0][1] == start
    assert parts[-1][2] == end
    for month, since, until in parts:
        assert month <= since <= until <= next_month(month)
    assert [until for _, _, until in parts[:-1]] == [since for _, since, _ in parts[1:]]
    assert all(since == month for month, since, _ in parts[1:])


CAP_TIME = datetime(2026, 2, 10, 12, 0, 0, 1, tzinfo=UTC)
CAP = Cap(Decimal(5), of_tenant=False)
amounts = st.decimals("0", "1000", places=4)
rates = st.decimals("0.0001", "500", places=4)


def account(spent: str, rate: str = "0.1965", cap: Cap = CAP, *, warned: bool = False) -> Account:
    return Account(cap, Spent(Decimal(spent), Decimal(rate)), warned)


@given(amounts, rates, amounts)
@example(Decimal(0), Decimal("0.0384"), Decimal("0.0001"))
def test_at_that_time_so_much_is_spent_and_a_moment_before_it_was_not(
    money: Decimal, rate: Decimal, amount: Decimal
) -> None:
    at = Spent(money, rate).reaches(amount, CAP_TIME)
    if at is None:
        left = Decimal((next_month(CAP_TIME) - CAP_TIME).total_seconds())
        assert money + rate * left / SECONDS_PER_HOUR <= amount + Decimal("0.0001")
        return
    span = at - CAP_TIME
    micro = Decimal(span.days * 86400 + span.seconds) * 1_000_000 + span.microseconds
    assert money + rate * micro / 1_000_000 / SECONDS_PER_HOUR >= amount - Decimal("1e-20")
    if micro > 0:
        assert money + rate * (micro - 1) / 1_000_000 / SECONDS_PER_HOUR < amount


def test_forecast_starts_from_what_runs_now() -> None:
    now = datetime(2026, 6, 29, 12, 0, 0, 5, tzinfo=UTC)
    assert Spent(Decimal("0.10"), Decimal("0.2")).forecast(now) == Decimal("7.30")
    assert Spent(Decimal("0.10"), Decimal(0)).forecast(now) == Decimal("0.10")


def test_zero_rate_never_reaches_a_cap() -> None:
    assert Spent(Decimal(1), Decimal(0)).reaches(Decimal(2), CAP_TIME) is None
    assert Spent(Decimal(2), Decimal(0)).reaches(Decimal(2), CAP_TIME) == CAP_TIME


def test_cap_reached_next_month_is_not_due_now() -> None:
    assert Spent(Decimal(0), Decimal("0.0001")).reaches(Decimal(5), CAP_TIME) is None


def test_first_the_warning_is_due_then_the_end_then_the_next_month() -> None:
    hourly = account("0", rate="1")
    assert hourly.next_check(CAP_TIME) == CAP_TIME + timedelta(hours=4)
    assert account("4", rate="1", warned=True).next_check(CAP_TIME) == CAP_TIME + timedelta(hours=1)
    assert account("5", rate="1", warned=True).next_check(CAP_TIME) == next_month(CAP_TIME)
    assert account("1", rate="0").next_check(CAP_TIME) == next_month(CAP_TIME)


def test_cap_warns_once_and_stops_at_the_full_amount() -> None:
    assert not account("3.9999").warning_due
    assert account("4").warning_due
    assert not account("4", warned=True).warning_due
    assert not account("4.999999").is_reached
    assert account("5").is_reached


def test_lowest_reached_cap_is_named() -> None:
    tenant = account("7", cap=Cap(Decimal(6), of_tenant=True))
    assert tightest([tenant, account("5.1")]) == account("5.1")
    assert tightest([tenant, account("4.9")]) == tenant
    assert tightest([account("1")]) is None


def test_the_reason_names_the_amount_with_its_cents() -> None:
    assert cap_message(CAP, "EUR") == "spending cap of 5.00 EUR reached"


def test_the_lower_of_two_limits_holds() -> None:
    assert lowest(None, Decimal(3), Decimal(2)) == 2
    assert lowest(None, None) is None


def test_numbers_and_text_are_cells() -> None:
    text = csv_text([("name", "cost"), ('a "b", c', Decimal("1.20")), ("two\nlines", -3)])
    assert text.splitlines()[0] == "name,cost"
    assert list(csv.reader(io.StringIO(text)))[1:] == [['a "b", c', "1.20"], ["two\nlines", "-3"]]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1", "\n=1", "=cmd|' /C calc'!A0"])
def test_text_is_no_formula(text: str) -> None:
    ((cell,),) = csv.reader(io.StringIO(csv_text([(text,)]), newline=""))
    assert cell == f"'{text}"
