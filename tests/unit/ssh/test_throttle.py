"""Wrong tokens are slowed down, and what is not logged in is bounded; no address is ever refused."""

from __future__ import annotations

from builderd.ssh.throttle import (
    MAX_ADDRESSES,
    MAX_DELAY,
    MAX_DELAYED,
    MAX_PENDING,
    MAX_PENDING_TOTAL,
    WINDOW,
    Attempt,
    Throttle,
)

HERE, THERE = "192.0.2.1", "192.0.2.2"


class Scene:
    """A throttle, and which connections it ended."""

    def __init__(self) -> None:
        self.throttle = Throttle()
        self.ended: list[str] = []

    def enter(self, address: str = HERE, name: str = "", *, has_keys: bool = True) -> Attempt:
        return self.throttle.enter(address, lambda: self.ended.append(name), lambda: has_keys)

    def fail(self, address: str = HERE, now: float = 0.0) -> float | None:
        """A wrong token of a connection that then goes."""
        attempt = self.enter(address)
        delay = self.throttle.failed(attempt, now)
        self.throttle.leave(attempt)
        return delay


def test_each_wrong_token_takes_longer_up_to_a_bound() -> None:
    scene = Scene()
    assert [scene.fail(now=float(n)) for n in range(8)] == [0.25, 0.5, 1, 2, 4, 4, 4, 4]
    assert [scene.fail(now=10.0) for _ in range(5_000)][-1] == MAX_DELAY
    assert scene.fail(THERE) == 0.25
    assert scene.fail(now=11.0 + WINDOW) == 0.25, "its time is over"


def test_no_number_of_wrong_tokens_keeps_a_connection_of_the_same_address_out() -> None:
    scene = Scene()
    for n in range(1_000):
        scene.fail(now=float(n))
    for _ in range(MAX_PENDING):
        scene.throttle.failed(scene.enter(name="wrong"), 1.0)
    right = scene.enter(name="right")
    assert scene.ended == ["wrong"]
    for _ in range(MAX_PENDING - 1):
        scene.enter(name="wrong")
    assert "right" not in scene.ended
    scene.throttle.leave(right)


def test_a_network_of_ipv6_is_one_visitor() -> None:
    scene = Scene()
    assert [scene.fail(f"2001:db8::{n:x}") for n in range(3)] == [0.25, 0.5, 1]
    assert scene.fail("2001:db8:0:1::1") == 0.25
    assert scene.fail("fe80::1%eth0") == 0.25


def test_wrong_tokens_that_wait_are_bounded() -> None:
    scene = Scene()
    waiting = [scene.enter() for _ in range(MAX_DELAYED + 1)]
    delays = [scene.throttle.failed(one, 0.0) for one in waiting]
    assert None not in delays[:MAX_DELAYED]
    assert delays[MAX_DELAYED] is None
    for one in waiting:
        scene.throttle.leave(one)
    assert scene.fail() is not None


def test_silent_connection_is_dropped_before_an_active_one() -> None:
    scene = Scene()
    scene.enter(name="gets on")
    for _ in range(MAX_PENDING - 1):
        scene.enter(name="silent", has_keys=False)
    for _ in range(MAX_PENDING):
        scene.enter(name="new", has_keys=False)
    assert "gets on" not in scene.ended
    assert len(scene.ended) == MAX_PENDING


def test_connections_without_login_are_bounded_and_forgotten_at_their_end() -> None:
    scene = Scene()
    alone = scene.enter(THERE, "alone")
    for n in range(2 * MAX_PENDING_TOTAL):
        scene.enter(f"10.0.{n % 7}.1", "of many")
    assert scene.throttle._total == MAX_PENDING_TOTAL
    assert "alone" not in scene.ended, "who has the most makes room"
    scene.throttle.leave(alone)
    scene.throttle.leave(alone)
    assert scene.throttle._total == MAX_PENDING_TOTAL - 1
    assert THERE not in scene.throttle._pending


def test_throttle_memory_is_bounded() -> None:
    scene = Scene()
    for n in range(MAX_ADDRESSES + 10):
        scene.fail(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}")
    assert len(scene.throttle._failures) == MAX_ADDRESSES
    assert not scene.throttle._pending


def test_ipv4_clients_that_a_standby_names_by_ipv6_are_apart() -> None:
    """Clients of IPv4 have such addresses on the host ``::``."""
    scene = Scene()
    assert [scene.fail("::ffff:192.0.2.1") for _ in range(3)] == [0.25, 0.5, 1]
    assert scene.fail("::ffff:192.0.2.2") == 0.25
    assert scene.fail("192.0.2.1") == 2
