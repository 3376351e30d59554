"""Guessing is slowed down, then refused by address."""

from builderd.doors.ssh.throttle import MAX_ADDRESSES, MAX_FAILURES, MAX_PENDING, WINDOW, Throttle

HERE, THERE = "192.0.2.1", "192.0.2.2"


def test_each_wrong_token_takes_longer_up_to_a_bound() -> None:
    throttle = Throttle()
    delays = [throttle.failed(HERE, float(n)) for n in range(8)]
    assert delays == [0.25, 0.5, 1, 2, 4, 4, 4, 4]


def test_an_address_that_guesses_is_refused_until_its_time_is_over_and_others_are_not() -> None:
    throttle = Throttle()
    for n in range(MAX_FAILURES):
        throttle.failed(HERE, float(n))
    assert not throttle.enter(HERE, 10.0)
    assert throttle.enter(THERE, 10.0)
    assert throttle.enter(HERE, WINDOW + MAX_FAILURES)


def test_a_network_of_ipv6_is_one_visitor() -> None:
    throttle = Throttle()
    for n in range(MAX_FAILURES):
        throttle.failed(f"2001:db8::{n:x}", 0.0)
    assert not throttle.enter("2001:db8::ffff", 1.0)
    assert throttle.enter("2001:db8:0:1::1", 1.0)
    assert throttle.enter("fe80::1%eth0", 1.0)


def test_what_does_not_log_in_is_bounded_and_forgotten_when_it_goes() -> None:
    throttle = Throttle()
    assert all(throttle.enter(HERE, 0.0) for _ in range(MAX_PENDING))
    assert not throttle.enter(HERE, 0.0)
    throttle.leave(HERE)
    assert throttle.enter(HERE, 0.0)


def test_what_is_remembered_is_bounded() -> None:
    throttle = Throttle()
    for n in range(MAX_ADDRESSES + 10):
        throttle.failed(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", 0.0)
    assert len(throttle._failures) == MAX_ADDRESSES
