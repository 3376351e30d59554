"""Denied system calls, by an evaluation of the policy's own conditions on 64-bit arguments."""

from __future__ import annotations

import re

import pytest

from builderd.adapters.engines.incus.instance import denied_calls

#: Upper bits of an argument that the kernel ignores.
FAR = 1 << 32


def answer(call: str, *arguments: int) -> int | None:
    """Return the error with which the policy answers the call; None if it lets it pass."""
    for line in denied_calls().splitlines():
        name, _, error, *conditions = line.split()
        if name == call and all(holds(condition, arguments) for condition in conditions):
            return int(error)
    return None


def holds(condition: str, arguments: tuple[int, ...]) -> bool:
    parsed = re.fullmatch(r"\[(\d),(\w+),SCMP_CMP_(GT|MASKED_EQ)(?:,(\w+))?\]", condition)
    assert parsed, condition
    argument, value = arguments[int(parsed[1])], int(parsed[2], 0)
    return argument > value if parsed[3] == "GT" else argument & int(parsed[4], 0) == value


@pytest.mark.parametrize(
    "name", ["mount", "unshare", "setns", "ptrace", "bpf", "keyctl", "io_uring_setup", "userfaultfd", "seccomp"]
)
def test_dangerous_call_is_denied(name: str) -> None:
    assert answer(name, 0, 0, 0) is not None


@pytest.mark.parametrize("upper", [0, FAR])
@pytest.mark.parametrize("flag", [0x10000000, 0x20000, 0x40000000])
def test_clone_into_a_namespace_is_denied(flag: int, upper: int) -> None:
    assert answer("clone", upper | flag | 17) == 1
    assert answer("clone", upper | 17) is None


@pytest.mark.parametrize("upper", [0, FAR])
@pytest.mark.parametrize("family", [3, 9, 17, 30, 38, 40, 44])
def test_unusual_family_is_denied(family: int, upper: int) -> None:
    assert answer("socket", upper | family, 2, 0) == 1
    assert answer("socketpair", upper | family, 2, 0) == 1


@pytest.mark.parametrize("upper", [0, FAR])
@pytest.mark.parametrize("family", [2, 10])
@pytest.mark.parametrize(
    ("kind", "protocol"), [(1, 262), (2, 136), (1, 132), (5, 132), (5, 0), (6, 33), (6, 0), (2, 115)]
)
def test_rare_protocol_of_the_internet_is_unknown(family: int, kind: int, protocol: int, upper: int) -> None:
    assert answer("socket", family, kind, upper | protocol) in (93, 1)
    assert answer("socket", upper | family, upper | kind, protocol) == 93


@pytest.mark.parametrize(("kind", "protocol"), [(1, 0), (1, 6), (2, 0), (2, 17), (2, 1), (2, 58), (1 | 0o2000000, 0)])
def test_common_internet_socket_is_open(kind: int, protocol: int) -> None:
    assert answer("socket", 2, kind, protocol) is None
    assert answer("socket", 10, kind, protocol) is None


def test_raw_sockets_are_denied_and_local_ones_open() -> None:
    assert answer("socket", 2, 3, 1) == answer("socket", 10, FAR | 3, 0) == 1
    assert [answer("socket", 1, kind, 0) for kind in (1, 2, 5)] == [None] * 3
    assert answer("socket", 16, 3, 0) is None
    assert answer("socket", 16, 3, 9) == answer("socket", 16, 3, FAR | 9) == 93


@pytest.mark.parametrize("upper", [0, FAR])
def test_filters_and_multicast_groups_are_denied(upper: int) -> None:
    assert answer("setsockopt", 3, upper | 1, upper | 26) == 1
    assert answer("setsockopt", 3, upper | 0, upper | 35) == answer("setsockopt", 3, upper | 41, upper | 20) == 105
    assert answer("setsockopt", 3, 1, 2) is answer("setsockopt", 3, 6, 26) is None
    assert answer("prctl", upper | 22) == 22
    assert answer("prctl", 38) is None
