"""Logs are read line by line, whole, once, and over a rotation."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from builderd.adapters.engines.oci.runtime import log_records as module
from builderd.adapters.engines.oci.runtime.log_records import MAX_LINE, Cursor, parse_log, read_generations
from builderd.adapters.engines.oci.runtime.logs import KEPT_LOGS, Logs
from builderd.domain.ids import BuilderId, SandboxId
from builderd.domain.sandboxes import LogLine, LogStream


def record(text: str, flag: str = "F", stream: str = "stdout", second: int = 0) -> bytes:
    return f"2026-01-02T03:04:{second:02}.123456789+02:00 {stream} {flag} {text}\n".encode()


def texts(lines: Sequence[LogLine]) -> list[str]:
    return [line.text for line in lines]


def test_a_line_has_its_time_in_utc_its_stream_and_its_text() -> None:
    (line,), offset, skip, *_ = parse_log(record("a  b ", stream="stderr"), 0, 0, False)
    assert isinstance(line, LogLine)
    assert line.time.isoformat() == "2026-01-02T01:04:00.123456+00:00"
    assert (line.stream, line.text) == (LogStream.STDERR, "a  b ")
    assert (offset, skip) == (len(record("a  b ", stream="stderr")), 0)


def test_parts_are_joined_and_streams_kept_apart() -> None:
    content = record("one ", "P") + record("err", stream="stderr") + record("two", "P") + record("", "F")
    lines, offset, *_ = parse_log(content, 0, 0, False)
    assert texts(lines) == ["err", "one two"]
    assert offset == len(content)


def test_incomplete_line_is_returned_once_when_complete() -> None:
    head = record("begin ", "P") + record("other", stream="stderr")
    lines, offset, skip, *_ = parse_log(head, 0, 0, False)
    assert texts(lines) == ["other"]
    assert (offset, skip) == (0, 1)
    whole = head + record("end") + record("next")
    lines, offset, skip, *_ = parse_log(whole, offset, skip, False)
    assert texts(lines) == ["begin end", "next"]
    assert (offset, skip) == (len(whole), 0)


def test_at_the_end_an_open_line_is_a_line() -> None:
    content = record("no newline", "P")
    assert texts(parse_log(content, 0, 0, True)[0]) == ["no newline"]
    assert parse_log(content, 0, 0, False) == ([], 0, 0, 0, False)


def test_an_endless_line_is_cut() -> None:
    piece = "x" * 60_000
    content = b"".join(record(piece, "P") for _ in range(MAX_LINE // len(piece) + 2))
    lines, offset, *_ = parse_log(content, 0, 0, False)
    assert len(lines) == 1
    assert MAX_LINE < len(lines[0].text) < MAX_LINE + len(piece)
    assert offset > 0


def test_invalid_bytes_and_records_are_replaced_or_skipped() -> None:
    content = record("ok")[:-1] + b"\xff\n" + b"rubbish\n" + record("still")
    assert texts(parse_log(content, 0, 0, False)[0]) == ["ok\ufffd", "still"]


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
    assert sorted(told + texts(lines)) == sorted(whole)


def test_reading_continues_over_a_rotation() -> None:
    first, newest = record("a", second=1) + record("b", "P"), record("y", second=9)
    lines, cursor, _ = read_generations([first], Cursor(), False)
    assert texts(lines) == ["a"]
    lines, cursor, _ = read_generations([first, newest], Cursor.parse(cursor), False)
    assert texts(lines) == ["b", "y"]
    assert read_generations([first, newest], Cursor.parse(cursor), False) == ([], cursor, False)


def test_a_generation_that_was_lost_is_passed_over() -> None:
    first, middle, newest = (record(text, second=second) for text, second in (("a", 1), ("m", 5), ("y", 9)))
    _, cursor, _ = read_generations([first, middle], Cursor(), False)
    lines, _, _ = read_generations([first, newest], Cursor.parse(cursor), False)
    assert texts(lines) == ["y"]


def test_an_empty_log_has_an_empty_cursor() -> None:
    assert read_generations([b""], Cursor(), False) == ([], "", False)
    assert read_generations([], Cursor(), False) == ([], "", False)


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


def test_reading_continues_after_the_last_lines() -> None:
    content = record("a") + record("b") + record("open", "P")
    lines, cursor, _ = read_generations([content], Cursor(), False, 1)
    assert texts(lines) == ["b"]
    lines, _, _ = read_generations([content + record(" line")], Cursor.parse(cursor), False)
    assert texts(lines) == ["open line"]


def test_the_last_lines_after_a_cursor_are_not_those_before_it() -> None:
    content = record("a") + record("b")
    _, cursor, _ = read_generations([content], Cursor(), False)
    more = content + record("c")
    assert texts(read_generations([more], Cursor.parse(cursor), False, 10)[0]) == ["c"]


async def test_a_cursor_costs_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading on reads only the new lines of a long log."""
    logs = Logs(tmp_path, lambda _: True)
    log = logs.begin(BuilderId("b"), SandboxId("5a"))
    with log.open("ab") as file:
        file.write(b"".join(record(str(number)) for number in range(50_000)))
    _, cursor, _ = await logs.read_log(SandboxId("5a"), tail=1)
    with log.open("ab") as file:
        file.write(record("new"))
    looked: list[int] = []
    real = module.records

    def counting(content: module.Content, offset: int) -> object:
        for one in real(content, offset):
            looked.append(one[4])
            yield one

    monkeypatch.setattr(module, "records", counting)
    lines, _, _ = await logs.read_log(SandboxId("5a"), cursor)
    assert [line.text for line in lines] == ["new"]
    assert len(looked) == 1


# In pages


def talk(seed: int, count: int, first: int = 0) -> bytes:
    """Records of two streams a second apart, of which some are only parts of lines."""
    chance = random.Random(seed)
    return b"".join(
        at(number, str(number), chance.choice("FFFP"), chance.choice(["stdout", "stderr"]))
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
    assert sorted(told, key=str) == sorted(whole, key=str)
    assert cursor == end


def test_log_page_ends_between_lines() -> None:
    content = at(0, "a") + at(1, "b ", "P") + b"".join(at(n, str(n), stream="stderr") for n in range(2, 6)) + at(6, "b")
    lines, cursor, more = read_generations([content], Cursor(), False, limit=4)
    assert (texts(lines), more) == (["a"], True)
    lines, _, more = read_generations([content], Cursor.parse(cursor), False, limit=5)
    assert (sorted(texts(lines)), more) == (["2", "3", "4", "5", "b b"], False)


def test_incomplete_line_does_not_stop_later_pages() -> None:
    content = at(0, "open ", "P") + b"".join(at(n, str(n), stream="stderr") for n in range(1, 6)) + at(6, "end")
    lines, cursor, _ = read_generations([content], Cursor(), False, limit=4)
    assert texts(lines) == ["1", "2", "3", "4"]
    lines, _, more = read_generations([content], Cursor.parse(cursor), False, limit=4)
    assert (texts(lines), more) == (["5", "open end"], False)


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_lines_that_are_open_at_the_end_come_at_last(limit: int) -> None:
    content = at(0, "a") + at(1, "out", "P") + at(2, "err", "P", "stderr")
    told: list[str] = []
    page = read_generations([content], Cursor(), True, 1, limit=0)
    assert (page.lines, page.more) == ([], True)
    while page.more:
        page = read_generations([content], Cursor.parse(page.cursor), True, limit=limit)
        told += texts(page.lines)
    assert told[-1] == "err"
    assert len(told) <= 2


def test_long_lines_make_short_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE_SIZE", 100)
    content = b"".join(record("x" * 60) for _ in range(5))
    lines, cursor, more = read_generations([content], Cursor(), True, limit=500)
    assert (len(lines), more) == (2, True)
    assert len(read_generations([content], Cursor.parse(cursor), True)[0]) == 3


@pytest.mark.parametrize("tail", [0, 1, 50, 99, 100, 101, 200, 5_000])
def test_where_the_last_lines_begin_is_found_without_them(tail: int) -> None:
    contents = [talk(1, 200), talk(2, 150, 200)]
    start = read_generations(contents, Cursor(), True, tail, limit=0)
    assert start.lines == []
    whole = read_generations(contents, Cursor(), True)[0]
    rest = read_generations(contents, Cursor.parse(start.cursor), True)[0]
    assert texts(rest) == texts(whole)[max(len(whole) - tail, 0) :]


@pytest.mark.parametrize("second", [0, 1, 100, 199, 200, 230, 349, 350])
def test_reading_begins_at_a_time_with_whole_lines(second: int) -> None:
    contents, since = [talk(1, 200), talk(2, 150, 200)], BEGINNING + timedelta(seconds=second)
    lately = read_generations(contents, Cursor(), True, since=since)[0]
    whole = read_generations(contents, Cursor(), True)[0]
    assert [line for line in lately if line.time >= since] == [line for line in whole if line.time >= since]
    assert len([line for line in lately if line.time < since]) <= module.MARGIN


def test_to_begin_at_a_time_little_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    content, looked, real = b"".join(at(n, str(n)) for n in range(50_000)), [], module._time

    def counting(text: bytes) -> datetime:
        looked.append(text)
        return real(text)

    monkeypatch.setattr(module, "_time", counting)
    page = read_generations([content], Cursor(), True, since=BEGINNING + timedelta(seconds=25_000), limit=100)
    assert page.lines[-1].text > "25000"
    assert len(looked) < 300


def test_rotated_log_is_continued() -> None:
    full, newest = record("a", second=1) + record("b", second=2), record("y", second=9)
    _, cursor, _ = read_generations([full], Cursor(), False)
    assert read_generations([full, b""], Cursor.parse(cursor), False) == ([], cursor, False)
    assert texts(read_generations([full, newest], Cursor.parse(cursor), False)[0]) == ["y"]
    assert texts(read_generations([full, b""], Cursor(), False)[0]) == ["a", "b"]


def test_line_after_a_truncated_one_is_returned() -> None:
    dots = b"".join(record("." * 40, "P") for _ in range(MAX_LINE // 80))
    (cut,), cursor, _ = read_generations([dots], Cursor(), False)
    assert set(cut.text) == {"."}
    lines, _, _ = read_generations([dots + record("error", stream="stderr")], Cursor.parse(cursor), False)
    assert texts(lines) == ["error"]
