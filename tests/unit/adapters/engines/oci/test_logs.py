"""Logs are read line by line, whole, once, and over a rotation."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from builderd.adapters.engines.oci import logs as module
from builderd.adapters.engines.oci.logs import KEPT_LOGS, MAX_LINE, Cursor, Logs, parse_log, read_generations
from builderd.domain.ids import BuilderId, SandboxId
from builderd.domain.logs import LogLine, LogStream


def record(text: str, flag: str = "F", stream: str = "stdout", second: int = 0) -> bytes:
    return f"2026-01-02T03:04:{second:02}.123456789+02:00 {stream} {flag} {text}\n".encode()


def texts(lines: object) -> list[str]:
    assert isinstance(lines, list)
    return [line.text for line in lines]


def test_a_line_has_its_time_in_utc_its_stream_and_its_text() -> None:
    (line,), offset, skip = parse_log(record("a  b ", stream="stderr"), 0, 0, False)
    assert isinstance(line, LogLine)
    assert line.time.isoformat() == "2026-01-02T01:04:00.123456+00:00"
    assert (line.stream, line.text) == (LogStream.STDERR, "a  b ")
    assert (offset, skip) == (len(record("a  b ", stream="stderr")), 0)


def test_parts_are_joined_and_streams_kept_apart() -> None:
    content = record("one ", "P") + record("err", stream="stderr") + record("two", "P") + record("", "F")
    lines, offset, _ = parse_log(content, 0, 0, False)
    assert texts(lines) == ["err", "one two"]
    assert offset == len(content)


def test_an_open_line_is_awaited_and_then_told_once_with_nothing_twice() -> None:
    head = record("begin ", "P") + record("other", stream="stderr")
    lines, offset, skip = parse_log(head, 0, 0, False)
    assert texts(lines) == ["other"]
    assert (offset, skip) == (0, 1)
    whole = head + record("end") + record("next")
    lines, offset, skip = parse_log(whole, offset, skip, False)
    assert texts(lines) == ["begin end", "next"]
    assert (offset, skip) == (len(whole), 0)


def test_at_the_end_an_open_line_is_a_line() -> None:
    content = record("no newline", "P")
    assert texts(parse_log(content, 0, 0, True)[0]) == ["no newline"]
    assert parse_log(content, 0, 0, False) == ([], 0, 0)


def test_an_endless_line_is_cut() -> None:
    piece = "x" * 60_000
    content = b"".join(record(piece, "P") for _ in range(MAX_LINE // len(piece) + 2))
    lines, offset, _ = parse_log(content, 0, 0, False)
    assert len(lines) == 1
    assert MAX_LINE < len(lines[0].text) < MAX_LINE + len(piece)
    assert offset > 0


def test_bytes_that_are_no_text_and_records_that_are_none() -> None:
    content = record("ok")[:-1] + b"\xff\n" + b"rubbish\n" + record("still")
    assert texts(parse_log(content, 0, 0, False)[0]) == ["ok\ufffd", "still"]


@pytest.mark.parametrize("seed", range(20))
def test_reading_in_any_pieces_gives_what_reading_at_once_gives(seed: int) -> None:
    chance = random.Random(seed)
    content = b""
    for number in range(40):
        stream = chance.choice(["stdout", "stderr"])
        content += record(str(number), chance.choice("FFP"), stream, number)
    whole = texts(list(read_generations([content], Cursor(), True)[0]))
    told: list[str] = []
    cursor = ""
    cut = 0
    while cut < len(content):
        cut += chance.randrange(1, 200)
        lines, cursor = read_generations([content[:cut]], Cursor.parse(cursor), False)
        told += texts(list(lines))
    lines, cursor = read_generations([content], Cursor.parse(cursor), True)
    assert sorted(told + texts(list(lines))) == sorted(whole)


def test_reading_goes_on_over_a_rotation() -> None:
    first, newest = record("a", second=1) + record("b", "P"), record("y", second=9)
    lines, cursor = read_generations([first], Cursor(), False)
    assert texts(lines) == ["a"]
    lines, cursor = read_generations([first, newest], Cursor.parse(cursor), False)
    assert texts(lines) == ["b", "y"]
    assert read_generations([first, newest], Cursor.parse(cursor), False) == ([], cursor)


def test_a_generation_that_was_lost_is_passed_over() -> None:
    first, middle, newest = (record(text, second=second) for text, second in (("a", 1), ("m", 5), ("y", 9)))
    _, cursor = read_generations([first, middle], Cursor(), False)
    lines, _ = read_generations([first, newest], Cursor.parse(cursor), False)
    assert texts(lines) == ["y"]


def test_an_empty_log_has_an_empty_cursor() -> None:
    assert read_generations([b""], Cursor(), False) == ([], "")
    assert read_generations([], Cursor(), False) == ([], "")


def test_the_first_file_stays_when_the_shim_replaces_the_log(tmp_path: Path) -> None:
    logs, builder, sandbox = Logs(tmp_path), BuilderId("b"), SandboxId("ab")
    log = logs.begin(builder, sandbox)
    log.write_bytes(record("first"))
    (tmp_path / "new").write_bytes(record("newest", second=9))
    (tmp_path / "new").rename(log)
    assert texts(list(logs.read(sandbox, "", False)[0])) == ["first", "newest"]
    logs.delete(builder)
    assert logs.read(sandbox, "", False) == ([], "")


def test_old_logs_of_a_builder_are_dropped(tmp_path: Path) -> None:
    logs = Logs(tmp_path)
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
    everything, end = read_generations(contents, Cursor(), True)
    lines, cursor = read_generations(contents, Cursor(), True, count)
    assert texts(list(lines)) == texts(list(everything))[max(len(everything) - count, 0) :]
    assert cursor == end


def test_reading_goes_on_after_the_last_lines() -> None:
    content = record("a") + record("b") + record("open", "P")
    lines, cursor = read_generations([content], Cursor(), False, 1)
    assert texts(list(lines)) == ["b"]
    lines, _ = read_generations([content + record(" line")], Cursor.parse(cursor), False)
    assert texts(list(lines)) == ["open line"]


def test_the_last_lines_after_a_cursor_are_not_those_before_it() -> None:
    content = record("a") + record("b")
    _, cursor = read_generations([content], Cursor(), False)
    more = content + record("c")
    assert texts(list(read_generations([more], Cursor.parse(cursor), False, 10)[0])) == ["c"]


def test_a_cursor_costs_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a long log no more than the new lines is looked at."""
    logs = Logs(tmp_path)
    log = logs.begin(BuilderId("b"), SandboxId("s"))
    with log.open("ab") as file:
        file.write(b"".join(record(str(number)) for number in range(50_000)))
    _, cursor = logs.read(SandboxId("s"), "", ended=False, tail=1)
    with log.open("ab") as file:
        file.write(record("new"))
    looked: list[int] = []
    real = module._records

    def counting(content: module.Content, offset: int) -> object:
        for one in real(content, offset):
            looked.append(one[4])
            yield one

    monkeypatch.setattr(module, "_records", counting)
    lines, _ = logs.read(SandboxId("s"), cursor, ended=False)
    assert [line.text for line in lines] == ["new"]
    assert len(looked) == 1
