"""Messages for an app that did not start, with what to do."""

from __future__ import annotations

import pytest

from builderd.core.resources import Resources
from builderd.reconciler.failures import (
    describe_end,
    exited_early,
    exited_too_often,
    listens_elsewhere,
    not_listening,
    restart_note,
    wants_network,
)
from builderd.sandboxes.model import IPV6_ONLY, EndCause, Listening, SandboxEnd, is_loopback

SMALL = Resources(memory=0.5)
EXITED = SandboxEnd(EndCause.EXITED, 1, None)


@pytest.mark.parametrize(
    ("end", "text"),
    [
        (EXITED, "exited with code 1"),
        (SandboxEnd(EndCause.EXITED, 0, None), "exited with code 0"),
        (SandboxEnd(EndCause.EXITED, None, None), "exited"),
        (SandboxEnd(EndCause.OUT_OF_MEMORY, 137, None), "killed: out of memory, limit 0.5 GB"),
        (
            SandboxEnd(EndCause.HOST_OUT_OF_MEMORY, 137, None),
            "killed: the machine was out of memory, the app within its limit",
        ),
        (SandboxEnd(EndCause.HOST_RESTARTED, None, None), "host restarted"),
        (SandboxEnd(EndCause.STOPPED, 143, None), "stopped"),
        (SandboxEnd(EndCause.UNKNOWN, None, None), "ended, exit code unknown: the engine has no record of it"),
        (
            SandboxEnd(EndCause.MONITOR_LOST, None, None),
            "ended, exit code unknown: its log monitor (conmon) was killed",
        ),
    ],
)
def test_every_end_has_a_description(end: SandboxEnd, text: str) -> None:
    assert describe_end(end, SMALL) == text


@pytest.mark.parametrize(
    ("end", "advice"),
    [
        (SandboxEnd(EndCause.OUT_OF_MEMORY, 137, None), "resources.memory"),
        (SandboxEnd(EndCause.EXITED, 0, None), "one_time"),
        (SandboxEnd(EndCause.EXITED, 127, None), "entrypoint"),
        (SandboxEnd(EndCause.EXITED, 126, None), "executable"),
    ],
)
def test_an_early_exit_comes_with_advice(end: SandboxEnd, advice: str) -> None:
    message = exited_early(end, SMALL, 8000, ["last words"])
    assert message.startswith(f"The app ended before it listened on 0.0.0.0:8000: {describe_end(end, SMALL)}.")
    assert advice in message
    assert message.endswith("Its last lines:\nlast words")


def test_app_without_output_is_described() -> None:
    assert exited_early(EXITED, SMALL, 80, []).endswith("exited with code 1.\nIt wrote nothing.")


def test_an_app_that_ended_too_often_shows_how_and_its_last_lines() -> None:
    message = exited_too_often(EXITED, SMALL, 5, ["Traceback"])
    assert message == (
        "The app ended 5 times within 10 minutes, at last so: exited with code 1.\nIts last lines:\nTraceback"
    )


def test_only_the_end_of_a_long_log_is_shown() -> None:
    message = exited_early(EXITED, SMALL, 80, [*(f"line {number}" for number in range(100)), "x" * 100_000])
    assert "line 81\n" in message
    assert "line 80\n" not in message
    assert len(message) < 2_000


def test_a_restart_is_noted() -> None:
    assert restart_note(EXITED, SMALL, 3, 5) == "exited with code 1, restart 3 of 5"
    oom = SandboxEnd(EndCause.OUT_OF_MEMORY, 137, None)
    assert restart_note(oom, SMALL, 3, 5) == "out of memory (limit 0.5 GB), restart 3 of 5"
    assert restart_note(SandboxEnd(EndCause.HOST_RESTARTED, None, None), SMALL, 0, 5) == "host restarted"
    by_host = restart_note(SandboxEnd(EndCause.HOST_OUT_OF_MEMORY, 137, None), SMALL, 0, 5)
    assert by_host == "killed: the machine was out of memory, the app within its limit; restarted"
    lost = SandboxEnd(EndCause.MONITOR_LOST, None, None)
    assert restart_note(lost, SMALL, 0, 5) == "its log monitor (conmon) was killed; restarted"


def listening(*sockets: tuple[str, int]) -> Listening:
    return Listening(frozenset(sockets))


@pytest.mark.parametrize(
    ("sockets", "text"),
    [
        ([], "did not listen on 0.0.0.0:8000 within 60 seconds"),
        ([("127.0.0.1", 8000)], "listens on 127.0.0.1:8000, which cannot be reached"),
        ([("::1", 8000)], r"listens on [::1]:8000, which cannot be reached"),
        (
            [(IPV6_ONLY, 8000)],
            "port 8000 for IPv6 alone, and the preview asks by IPv4: bind it to 0.0.0.0:8000",
        ),
        ([("127.0.0.1", 8000), ("0.0.0.0", 9000)], "bind it to 0.0.0.0:8000"),
        ([("0.0.0.0", 5000)], "listens on port 5000, not on 0.0.0.0:8000: let it listen on the port in $PORT"),
        (
            [("0.0.0.0", 5000), ("::", 4000), ("127.0.0.1", 3000)],
            'port 3000, 4000, 5000, not on 0.0.0.0:8000: let it listen on the port in $PORT, or set "port" to the one',
        ),
        ([("127.0.0.1", 5000)], "listens on 127.0.0.1:5000, which cannot be reached"),
    ],
)
def test_a_closed_port_says_where_the_app_listens_instead(sockets: list[tuple[str, int]], text: str) -> None:
    message = not_listening(listening(*sockets), 8000, 60, [])
    assert text in message
    assert message.endswith("It wrote nothing.")


def test_an_app_listens_elsewhere_when_nothing_of_it_can_be_reached() -> None:
    assert not listens_elsewhere(listening(), 8000)
    assert listens_elsewhere(listening(("127.0.0.1", 8000)), 8000)
    assert listens_elsewhere(listening(("0.0.0.0", 9000)), 8000)
    assert not listens_elsewhere(listening(("0.0.0.0", 9000), ("::", 8000)), 8000)


@pytest.mark.parametrize(
    ("ip", "loopback"),
    [
        *(("127.0.0.1", True), ("127.8.9.10", True), ("::1", True), ("::ffff:127.0.0.1", True)),
        *(("0.0.0.0", False), ("::", False), ("10.0.0.2", False), ("::ffff:0.0.0.0", False), ("128.0.0.1", False)),
    ],
)
def test_loopback_addresses_are_distinguished(ip: str, loopback: bool) -> None:
    assert is_loopback(ip) is loopback


@pytest.mark.parametrize(
    ("line", "wants"),
    [
        ("telegram.error.NetworkError: httpx.ConnectError: All connection attempts failed", True),
        ("OSError: [Errno 113] Connect call failed ('198.51.100.7', 443)", True),
        ("OSError: Multiple exceptions: [Errno 101] Connect call failed ('::1', 5432, 0, 0), [Errno 113] Conn", True),
        ("OSError: all attempts to connect to example.com:443 failed", True),
        ("socket.gaierror: [Errno -3] Lookup timed out", True),
        ("Error: connect EHOSTUNREACH 198.51.100.7:443", True),
        ("dial tcp 198.51.100.7:443: connect: no route to host", True),
        ("ConnectionRefusedError: [Errno 111] Connect call failed ('127.0.0.1', 6379)", False),
        ("FileNotFoundError: [Errno 2] No such file or directory: 'config.toml'", False),
        ("KeyError: 'TOKEN'", False),
    ],
)
def test_failure_for_want_of_a_network_is_known_by_its_line(line: str, wants: bool) -> None:
    """A trial has no network: a bot that asks its server at once ended there before its second was over."""
    assert wants_network(["Traceback (most recent call last):", line]) is wants
