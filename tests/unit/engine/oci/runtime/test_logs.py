"""Logs are read line by line, whole, once, and over a rotation."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from builderd.core.ids import BuilderId, SandboxId
from builderd.engine.oci.runtime import logs as module
from builderd.engine.oci.runtime.logs import (
    KEPT_LOGS,
    MAX_LINE,
    Content,
    Cursor,
    Logs,
    lines_of,
    read_generations,
    search_generations,
)
from builderd.sandboxes.model import LogLine, LogMatch, LogStream


def record(text: str, flag: str = "F", stream: str = "stdout", second: int = 0) -> bytes:
    return f"2026-01-02T03:04:{second:02}.123456789+02:00 {stream} {flag} {text}\n".encode()


def texts(lines: Sequence[LogLine]) -> list[str]:
    return [line.text for line in lines]


def found(content: bytes, *, whole: bool = False) -> list[str]:
    return [line.text for line, _ in lines_of(content, 0, whole)]


def test_a_line_has_its_time_in_utc_its_stream_and_its_text() -> None:
    content = record("a  b ", stream="stderr")
    ((line, end),) = lines_of(content, 0, False)
    assert line.time.isoformat() == "2026-01-02T01:04:00.123456+00:00"
    assert (line.stream, line.text, end) == (LogStream.STDERR, "a  b ", len(content))


def test_parts_are_joined_until_the_other_stream_writes() -> None:
    content = record("one ", "P") + record("err", stream="stderr") + record("two ", "P") + record("three")
    assert found(content) == ["one ", "err", "two three"]


def test_open_line_is_a_line_at_the_end_only() -> None:
    content = record("a") + record("no newline", "P")
    assert found(content) == ["a"]
    assert found(content, whole=True) == ["a", "no newline"]
    _, cursor, _ = read_generations([content], Cursor(), False)
    assert texts(read_generations([content + record("!")], Cursor.parse(cursor), False).lines) == ["no newline!"]


def test_an_endless_line_is_cut() -> None:
    piece = "x" * 60_000
    (line,) = found(b"".join(record(piece, "P") for _ in range(MAX_LINE // len(piece) + 2)))
    assert MAX_LINE < len(line) < MAX_LINE + len(piece)


def test_invalid_bytes_and_records_are_replaced_or_skipped() -> None:
    assert found(record("ok")[:-1] + b"\xff\n" + b"rubbish\n" + record("still")) == ["ok\ufffd", "still"]


@pytest.mark.parametrize("seed", range(20))
def test_reading_in_any_pieces_gives_what_reading_at_once_gives(seed: int) -> None:
    chance = random.Random(seed)
    content = b""
    for number in range(40):
        stream = chance.choice(["stdout", "stderr"])
        content += record(str(number), chance.choice("FFP"), stream, number)
    whole = texts(read_generations([content], Cursor(), True)[0])
    told: list[str] = []
    cursor = ""
    cut = 0
    while cut < len(content):
        cut += chance.randrange(1, 200)
        lines, cursor, _ = read_generations([content[:cut]], Cursor.parse(cursor), False)
        told += texts(lines)
    lines, cursor, _ = read_generations([content], Cursor.parse(cursor), True)
    assert told + texts(lines) == whole


def test_a_generation_that_was_lost_is_passed_over() -> None:
    first, middle, newest = (record(text, second=second) for text, second in (("a", 1), ("m", 5), ("y", 9)))
    _, cursor, _ = read_generations([first, middle], Cursor(), False)
    lines, _, _ = read_generations([first, newest], Cursor.parse(cursor), False)
    assert texts(lines) == ["y"]


async def test_the_first_file_stays_when_the_shim_replaces_the_log(tmp_path: Path) -> None:
    logs, builder, sandbox = Logs(tmp_path, lambda _: True), BuilderId("b"), SandboxId("ab")
    log = logs.begin(builder, sandbox)
    log.write_bytes(record("first"))
    (tmp_path / "new").write_bytes(record("newest", second=9))
    (tmp_path / "new").rename(log)
    assert texts((await logs.read_log(sandbox)).lines) == ["first", "newest"]
    await logs.delete_logs(builder)
    assert not logs._found
    assert await logs.read_log(sandbox) == ([], "", False)


def test_old_logs_of_a_builder_are_dropped(tmp_path: Path) -> None:
    logs = Logs(tmp_path, lambda _: True)
    for number in range(KEPT_LOGS + 5):
        logs.begin(BuilderId("b"), SandboxId(f"{number:04x}"))
    assert len(list((tmp_path / "b").glob("*.log"))) <= KEPT_LOGS + 1
    assert len(list((tmp_path / "b").glob("*.first"))) <= KEPT_LOGS + 1


@pytest.mark.parametrize("count", [0, 1, 3, 500, 5000])
def test_the_last_lines_are_those_of_the_whole(count: int) -> None:
    chance = random.Random(count)
    contents = [
        b"".join(record(str(n), chance.choice("FFFFP"), chance.choice(["stdout", "stderr"]), n % 60) for n in numbers)
        for numbers in (range(1000), range(1000, 1400))
    ]
    everything, end, _ = read_generations(contents, Cursor(), True)
    lines, cursor, _ = read_generations(contents, Cursor(), True, count)
    assert texts(lines) == texts(everything)[max(len(everything) - count, 0) :]
    assert cursor == end


# In pages


def talk(seed: int, count: int, first: int = 0) -> bytes:
    """Records of two streams a second apart, of which some are only parts of lines."""
    chance = random.Random(seed)
    return b"".join(
        at(number, f"Näme {number}", chance.choice("FFFP"), chance.choice(["stdout", "stderr"]))
        for number in range(first, first + count)
    )


BEGINNING = datetime.fromisoformat("2026-01-02T00:00:00+00:00")


def at(second: int, text: str, flag: str = "F", stream: str = "stdout") -> bytes:
    return f"{(BEGINNING + timedelta(seconds=second)).isoformat()} {stream} {flag} {text}\n".encode()


@pytest.mark.parametrize("limit", [2, 3, 7, 1_000])
@pytest.mark.parametrize("seed", range(5))
def test_pages_give_what_reading_at_once_gives(seed: int, limit: int) -> None:
    contents = [talk(seed, 200), talk(seed + 100, 100, 200)]
    told: list[LogLine] = []
    cursor, more = "", True
    while more:
        lines, cursor, more = read_generations(contents, Cursor.parse(cursor), True, limit=limit)
        assert len(lines) <= limit
        told += lines
    whole, end, _ = read_generations(contents, Cursor(), True)
    assert told == whole
    assert cursor == end


def test_long_lines_make_short_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE_SIZE", 100)
    content = b"".join(record("x" * 60) for _ in range(5))
    lines, cursor, more = read_generations([content], Cursor(), True, limit=500)
    assert (len(lines), more) == (2, True)
    assert len(read_generations([content], Cursor.parse(cursor), True)[0]) == 3


@pytest.mark.parametrize("second", [0, 1, 100, 199, 200, 230, 349, 350])
def test_reading_begins_at_a_time_with_whole_lines(second: int) -> None:
    contents, since = [talk(1, 200), talk(2, 150, 200)], BEGINNING + timedelta(seconds=second)
    lately = read_generations(contents, Cursor(), True, since=since)[0]
    whole = read_generations(contents, Cursor(), True)[0]
    assert [line for line in lately if line.time >= since] == [line for line in whole if line.time >= since]
    assert len([line for line in lately if line.time < since]) <= 1


def test_rotated_log_is_continued() -> None:
    full, newest = record("a", second=1) + record("b", second=2), record("y", second=9)
    _, cursor, _ = read_generations([full], Cursor(), False)
    assert read_generations([full, b""], Cursor.parse(cursor), False) == ([], cursor, False)
    assert texts(read_generations([full, newest], Cursor.parse(cursor), False)[0]) == ["y"]
    assert texts(read_generations([full, b""], Cursor(), False)[0]) == ["a", "b"]


def test_line_after_a_truncated_one_is_returned() -> None:
    dots = b"".join(record("." * 40, "P") for _ in range(MAX_LINE // 80 + 1))
    (cut,), cursor, _ = read_generations([dots], Cursor(), False)
    assert set(cut.text) == {"."}
    lines, _, _ = read_generations([dots + record("error", stream="stderr")], Cursor.parse(cursor), False)
    assert texts(lines)[-1] == "error"


# Search from the end: each line once, in pieces


def search(contents: Sequence[Content], match: LogMatch, count: int) -> tuple[list[LogLine], int]:
    """Return all matching lines, and the number of pieces that were read."""
    result: list[LogLine] = []
    before, number, more = "", 0, True
    while more:
        lines, begin, _, more = search_generations(contents, match, Cursor.parse(before), True, count)
        assert begin != before
        result, before, number = [*lines, *result], begin, number + 1
    return result, number


def whole(contents: Sequence[Content], match: LogMatch) -> list[LogLine]:
    return [line for line in read_generations(contents, Cursor(), True).lines if match.passes(line)]


MATCHES = [
    LogMatch(),
    LogMatch(search="NÄME 1"),
    LogMatch(search="7"),
    LogMatch(stream=LogStream.STDERR),
    LogMatch(since=BEGINNING + timedelta(seconds=150), search="näme"),
    LogMatch(search="absent"),
]


@pytest.mark.parametrize("count", [1, 5, 40, 1_000])
@pytest.mark.parametrize("match", MATCHES)
def test_pieces_have_each_matching_line_once(match: LogMatch, count: int) -> None:
    contents = [talk(1, 200), talk(101, 150, 200)]
    found, _ = search(contents, match, count)
    assert found == whole(contents, match)


def test_reading_goes_on_after_the_newest_piece() -> None:
    content = b"".join(at(number, str(number)) for number in range(100)) + at(100, "open ", "P", "stderr")
    piece = search_generations([content], LogMatch(search="99"), Cursor(), False, 10)
    assert [line.text for line in piece.lines] == ["99"]
    later = content + at(101, "new") + at(102, "line", stream="stderr")
    page = read_generations([later], Cursor.parse(piece.end), False)
    assert [line.text for line in page.lines] == ["open ", "new", "line"]


def test_pieces_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE_SIZE", 1_000)
    content = b"".join(at(number, "x" * 100) for number in range(50))
    found, pieces = search([content], LogMatch(), 1_000)
    assert len(found) == 50
    assert pieces >= 7


def test_endless_line_ends_the_search() -> None:
    dots = b"".join(at(0, "." * 8_000, "P") for _ in range(5 * MAX_LINE // 8_000))
    found, pieces = search([at(0, "first") + dots], LogMatch(search="FIRST"), 10)
    assert [line.text for line in found] == ["first"]
    assert pieces < 10


@pytest.mark.parametrize("text", ["Kelvin \u212a", "Stra\u00dfe", "\u0130stanbul"])
def test_letters_that_fold_to_ascii_are_found(text: str) -> None:
    content = at(0, text) + b"".join(at(number, "x") for number in range(1, 50))
    folded = text.casefold()
    assert [line.text for line in search([content], LogMatch(search=folded), 10)[0]] == [text]
