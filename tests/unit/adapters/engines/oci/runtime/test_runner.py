"""The log of a build is passed on as it grows, in whole lines and pieces."""

from __future__ import annotations

from pathlib import Path

import pytest

from builderd.adapters.engines.oci.runtime.runner import LEFT_OUT, PIECE_BYTES, Tail


def record(text: str, flag: str = "F", stream: str = "stdout") -> bytes:
    return f"2026-07-01T00:00:00.000000000+00:00 {stream} {flag} {text}\n".encode()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def append(log: Path, content: bytes) -> None:
    with log.open("ab") as file:
        file.write(content)


async def test_lines_are_passed_on_complete_and_once(log: Path) -> None:
    told: list[str] = []
    tail = Tail(log, told.append)
    assert not tail.pass_on()
    whole = record("one ", "P") + record("error", stream="stderr") + record("line") + record("open", "P")
    for place in range(0, len(whole), 7):
        append(log, whole[place : place + 7])
        tail.pass_on()
    assert told == ["one ", "error", "line"]
    await tail.finish()
    assert told == ["one ", "error", "line", "open"]


async def test_flood_is_passed_on_in_pieces(log: Path) -> None:
    told: list[str] = []
    numbers = [str(number) for number in range(20_000)]
    append(log, b"".join(map(record, numbers)))
    tail = Tail(log, told.append)
    assert tail.pass_on()
    assert 0 < len(told) <= PIECE_BYTES / len(record("0"))
    await tail.finish()
    assert told == numbers


async def test_replaced_log_is_read_from_its_start(log: Path) -> None:
    told: list[str] = []
    append(log, record("a") + record("op", "P"))
    tail = Tail(log, told.append)
    tail.pass_on()
    append(log, record("en") + record("nobody came to read this"))
    append(log.with_name("new"), record("b"))
    log.with_name("new").rename(log)
    tail.pass_on()
    append(log, record("c"))
    await tail.finish()
    assert told == ["a", LEFT_OUT, "b", "c"]
