"""Search in a sandbox's log: piece by piece from its end, each line once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from builderd.adapters.engines.oci.runtime.log_records import (
    MARGIN,
    MAX_LINE,
    Content,
    Cursor,
    Generation,
    back,
    key_of,
    parse_log,
    records,
    time_at,
)
from builderd.domain.sandboxes import LogMatch, LogPiece, LogStream

#: Bytes of a log that are searched at once.
PIECE_SIZE = 1 << 20


def search_generations(
    contents: Sequence[Content], match: LogMatch, before: Cursor, ended: bool, count: int
) -> LogPiece:
    """Return the matching lines of the piece of about ``count`` lines before the cursor, as ``Engine.search_log``.

    A piece is of one generation. It begins where no line is open.
    """
    generations = [Generation(key_of(one), one, ended or one is not contents[-1]) for one in contents]
    generations = [one for one in generations if one.key]
    number = next((place for place, one in enumerate(generations) if one.key == before.generation), -1)
    if number < 0:
        if before.generation or not generations:
            return LogPiece([], "", str(before), more=False)
        number = len(generations) - 1
    key, content, whole = generations[number]
    if before.generation:
        start = _seam_before(content, before.offset, count)
        piece = content[start : before.offset]
        lines = [] if _has_none(piece, match.search) else parse_log(piece, 0, 0, whole=True).lines
        end = before
    else:
        start = _seam_before(content, len(content), count)
        parsed = parse_log(content, start, 0, whole)
        lines, end = parsed.lines, Cursor(key, parsed.offset, parsed.skip)
    lines = [line for line in lines if match.passes(line)]
    is_older = match.since is not None and time_at(content, start) < match.since
    if start == 0 and number > 0 and not is_older:
        earlier = generations[number - 1]
        return LogPiece(lines, str(Cursor(earlier.key, len(earlier.content))), str(end), more=True)
    return LogPiece(lines, str(Cursor(key, start)) if start else "", str(end), start > 0 and not is_older)


def _has_none(piece: bytes, search: str) -> bool:
    """Return True when no line of the piece can contain the text, which the bytes tell where all of both is ASCII.

    Text that is cut by records of parts (flag P) is found only in joined lines.
    """
    if not (search and search.isascii() and piece.isascii()) or b" P " in piece:
        return False
    return search.lower().encode() not in piece.lower()


def _seam_before(content: Content, end: int, count: int) -> int:
    """Return an offset about ``count`` records before the end at which no line is open, as records nearby tell."""
    size = PIECE_SIZE
    while True:
        first = max(back(content, end, count, end - size), 0)
        seam = next((offset for offset in _seams(content, back(content, first, MARGIN), end) if offset >= first), end)
        if first == 0 or seam < end:
            return 0 if first == 0 else seam
        if size > 2 * MAX_LINE:
            return first if first < end else 0
        count, size = 4 * count, 2 * size


def _seams(content: Content, offset: int, end: int) -> Iterator[int]:
    """Yield the offsets from this one on, before the end, at which no line is open; none is taken as open at first."""
    is_open: set[LogStream] = set()
    yield offset
    for _, stream, flag, _, after in records(content, offset):
        (is_open.discard if flag == b"F" else is_open.add)(stream)
        if after >= end:
            return
        if not is_open:
            yield after
