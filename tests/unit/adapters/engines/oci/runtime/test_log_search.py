"""Search from the end of a log: each line once, in pieces, over a rotation."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import datetime, timedelta

import pytest

from builderd.adapters.engines.oci.runtime import log_records
from builderd.adapters.engines.oci.runtime import log_search as module
from builderd.adapters.engines.oci.runtime.log_records import MAX_LINE, Content, Cursor, read_generations
from builderd.adapters.engines.oci.runtime.log_search import search_generations
from builderd.domain.sandboxes import LogLine, LogMatch, LogStream

BEGINNING = datetime.fromisoformat("2026-01-02T00:00:00+00:00")


def at(second: int, text: str, flag: str = "F", stream: str = "stdout") -> bytes:
    return f"{(BEGINNING + timedelta(seconds=second)).isoformat()} {stream} {flag} {text}\n".encode()


def talk(seed: int, count: int, first: int = 0) -> bytes:
    """Records of two streams a second apart, of which some are only parts of lines."""
    chance = random.Random(seed)
    return b"".join(
        at(number, f"Näme {number}", chance.choice("FFFP"), chance.choice(["stdout", "stderr"]))
        for number in range(first, first + count)
    )


def search(contents: Sequence[Content], match: LogMatch, count: int) -> tuple[list[LogLine], int]:
    """Return all matching lines, and the number of pieces that were read."""
    found: list[LogLine] = []
    before, number, more = "", 0, True
    while more:
        lines, begin, _, more = search_generations(contents, match, Cursor.parse(before), True, count)
        assert begin != before
        found, before, number = [*lines, *found], begin, number + 1
    return found, number


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
    assert sorted(found, key=str) == sorted(whole(contents, match), key=str)


def test_reading_goes_on_after_the_newest_piece() -> None:
    content = b"".join(at(number, str(number)) for number in range(100)) + at(100, "open ", "P", "stderr")
    piece = search_generations([content], LogMatch(search="99"), Cursor(), False, 10)
    assert [line.text for line in piece.lines] == ["99"]
    later = content + at(101, "new") + at(102, "line", stream="stderr")
    page = read_generations([later], Cursor.parse(piece.end), False)
    assert sorted(line.text for line in page.lines) == ["new", "open line"]


def test_reading_from_the_beginning_of_a_piece_gives_its_lines() -> None:
    content = talk(3, 300)
    piece = search_generations([content], LogMatch(), Cursor(), True, 50)
    assert read_generations([content], Cursor.parse(piece.begin), True).lines == piece.lines


def test_pieces_before_a_time_are_not_read() -> None:
    content = b"".join(at(number, str(number)) for number in range(10_000))
    found, pieces = search([content], LogMatch(since=BEGINNING + timedelta(seconds=9_950)), 100)
    assert (len(found), pieces) == (50, 1)


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


def test_text_over_parts_of_a_line_is_found() -> None:
    content = at(0, "nee", "P") + at(1, "dle") + b"".join(at(number, "x") for number in range(2, 50))
    assert [line.text for line in search([content], LogMatch(search="needle"), 10)[0]] == ["needle"]


@pytest.mark.parametrize("text", ["Kelvin \u212a", "Stra\u00dfe", "\u0130stanbul"])
def test_letters_that_fold_to_ascii_are_found(text: str) -> None:
    content = at(0, text) + b"".join(at(number, "x") for number in range(1, 50))
    folded = text.casefold()
    assert [line.text for line in search([content], LogMatch(search=folded), 10)[0]] == [text]


def test_pieces_without_the_text_are_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed, real = [], log_records.parse_log

    def counting(content: Content, offset: int, skip: int, whole: bool) -> object:
        parsed.append(len(content))
        return real(content, offset, skip, whole)

    monkeypatch.setattr(module, "parse_log", counting)
    content = b"".join(at(number, "needle" if number == 500 else "x") for number in range(10_000))
    found, pieces = search([content], LogMatch(search="Needle"), 100)
    assert ([line.text for line in found], pieces > 50) == (["needle"], True)
    assert len(parsed) == 2
