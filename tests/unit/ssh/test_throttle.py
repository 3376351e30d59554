"""Connections before login are bounded; no address is ever refused."""

from __future__ import annotations

from builderd.ssh.gateway import MAX_PENDING, MAX_PENDING_TOTAL, Attempt, Throttle

HERE, THERE = "192.0.2.1", "192.0.2.2"


class Scene:
    """A throttle, and which connections it ended."""

    def __init__(self) -> None:
        self.throttle = Throttle()
        self.ended: list[str] = []

    def enter(self, address: str = HERE, name: str = "", *, has_keys: bool = True) -> Attempt:
        return self.throttle.enter(address, lambda: self.ended.append(name), lambda: has_keys)


def test_no_number_of_wrong_tokens_keeps_a_connection_of_the_same_address_out() -> None:
    scene = Scene()
    for _ in range(MAX_PENDING):
        scene.enter(name="wrong").wrong = True
    right = scene.enter(name="right")
    assert scene.ended == ["wrong"]
    for _ in range(MAX_PENDING - 1):
        scene.enter(name="wrong")
    assert "right" not in scene.ended
    scene.throttle.leave(right)


def test_a_network_of_ipv6_is_one_visitor_and_mapped_ipv4_clients_are_apart() -> None:
    """Clients of IPv4 have such addresses on the host ``::``."""
    scene = Scene()
    keys = [scene.enter(address).key for address in ("2001:db8::1", "2001:db8::2", "2001:db8:0:1::1")]
    assert keys[0] == keys[1] != keys[2]
    assert scene.enter("::ffff:192.0.2.1").key == scene.enter("192.0.2.1").key != scene.enter("::ffff:192.0.2.2").key


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
