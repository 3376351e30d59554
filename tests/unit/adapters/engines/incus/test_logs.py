"""Logs of both streams, merged by time; cursors that hold while files are rotated."""

from __future__ import annotations

from builderd.adapters.engines.incus.logs import page_of, parse, piece_of
from builderd.domain.sandboxes import LogMatch, LogStream

OUT = parse("out", b"2026-11-28 02:00:00.000000001  one\n2026-11-28 02:00:00.000000001  two\n2026-11-28 02:00:02.5  x")
ERR = parse("err", b"2026-11-28 02:00:01.000000000  error\n")
THREE = parse("out", b"2026-11-28 02:00:02.500000000  three\n")


def texts(**changes: object) -> tuple[list[str], str, bool]:
    values: dict[str, object] = {"cursor": "", "tail": None, "since": None, "limit": None}
    page = page_of({"out": [*OUT, *THREE], "err": ERR}, **{**values, **changes})  # type: ignore[arg-type]
    return [line.text for line in page.lines], page.cursor, page.more


def test_only_complete_lines_are_read() -> None:
    assert [line.text for line in OUT] == ["one", "two"]


def test_streams_are_merged_by_time() -> None:
    page = page_of({"out": [*OUT, *THREE], "err": ERR}, "", None, None, None)
    assert [(line.stream, line.text) for line in page.lines] == [
        (LogStream.STDOUT, "one"),
        (LogStream.STDOUT, "two"),
        (LogStream.STDERR, "error"),
        (LogStream.STDOUT, "three"),
    ]


def test_pages_go_on_within_one_time() -> None:
    found, cursor, more = texts(limit=1)
    assert (found, more) == (["one"], True)
    found, cursor, more = texts(limit=2, cursor=cursor)
    assert (found, more) == (["two", "error"], True)
    assert texts(cursor=cursor) == (["three"], texts()[1], False)


def test_line_that_comes_late_in_the_other_stream_is_not_lost() -> None:
    cursor = page_of({"out": [*OUT, *THREE], "err": []}, "", None, None, None).cursor
    page = page_of({"out": [*OUT, *THREE], "err": ERR}, cursor, None, None, None)
    assert [line.text for line in page.lines] == ["error"]


def test_cursor_holds_when_earlier_files_are_gone() -> None:
    cursor = texts(limit=2)[1]
    page = page_of({"out": THREE, "err": []}, cursor, None, None, None)
    assert [line.text for line in page.lines] == ["three"]


def test_tail_is_of_both_streams() -> None:
    assert texts(tail=2)[0] == ["error", "three"]
    assert texts(tail=0) == ([], texts()[1], False)


def test_search_returns_pieces_from_the_end() -> None:
    streams = {"out": [*OUT, *THREE], "err": ERR}
    last = piece_of(streams, LogMatch(), "", 1)
    assert ([line.text for line in last.lines], last.end, last.more) == (["three"], texts()[1], True)
    rest = piece_of(streams, LogMatch(search="E"), last.begin, None)
    assert ([line.text for line in rest.lines], rest.begin, rest.more) == (["one", "error"], "", False)
    assert texts(cursor=last.begin)[0] == ["three"]
