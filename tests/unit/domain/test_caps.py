"""Times at which a cap is reached, to the microsecond, and its messages."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

from hypothesis import example, given
from hypothesis import strategies as st

from builderd.domain.prices import SECONDS_PER_HOUR, Account, Cap, Spent, cap_message, lowest, next_month, tightest

NOW = datetime(2026, 2, 10, 12, 0, 0, 1, tzinfo=UTC)
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
    at = Spent(money, rate).reaches(amount, NOW)
    if at is None:
        left = Decimal((next_month(NOW) - NOW).total_seconds())
        assert money + rate * left / SECONDS_PER_HOUR <= amount + Decimal("0.0001")
        return
    span = at - NOW
    micro = Decimal(span.days * 86400 + span.seconds) * 1_000_000 + span.microseconds
    assert money + rate * micro / 1_000_000 / SECONDS_PER_HOUR >= amount - Decimal("1e-20")
    if micro > 0:
        assert money + rate * (micro - 1) / 1_000_000 / SECONDS_PER_HOUR < amount


def test_zero_rate_never_reaches_a_cap() -> None:
    assert Spent(Decimal(1), Decimal(0)).reaches(Decimal(2), NOW) is None
    assert Spent(Decimal(2), Decimal(0)).reaches(Decimal(2), NOW) == NOW


def test_cap_reached_next_month_is_not_due_now() -> None:
    assert Spent(Decimal(0), Decimal("0.0001")).reaches(Decimal(5), NOW) is None


def test_first_the_warning_is_due_then_the_end_then_the_next_month() -> None:
    hourly = account("0", rate="1")
    assert hourly.next_check(NOW) == NOW + timedelta(hours=4)
    assert account("4", rate="1", warned=True).next_check(NOW) == NOW + timedelta(hours=1)
    assert account("5", rate="1", warned=True).next_check(NOW) == next_month(NOW)
    assert account("1", rate="0").next_check(NOW) == next_month(NOW)


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
