"""Line by line difference of two texts with a bounded amount of work.

Myers' algorithm (An O(ND) Difference Algorithm and Its Variations, 1986). ``difflib`` takes 23 s for two hostile files
of 4,000 lines: its work grows with the number of equal pairs of lines, which the files' author chooses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import Match, SequenceMatcher

#: Lines removed and added in one text, beyond which it counts as replaced.
MAX_EDITS = 1_000
CONTEXT_LINES = 3

Block = tuple[int, int, int]


class _Grouped(SequenceMatcher[str]):
    """Groups matching blocks that were found already into hunks, which is linear."""

    def __init__(self, blocks: Iterator[Block]) -> None:
        super().__init__()
        self._found = [Match(*block) for block in blocks]

    def get_matching_blocks(self) -> list[Match]:
        return self._found


@dataclass(slots=True)
class Work:
    """Steps that are left for all texts of a comparison; a step compares two lines. 1,000,000 take about 0.5 s."""

    steps: int = 1_000_000


def unified(old: Sequence[str], new: Sequence[str], work: Work) -> Iterator[str]:
    """Yield the unified diff of two texts without its head. Where the work does not suffice, all lines differ."""
    for group in _Grouped(_blocks(old, new, work)).get_grouped_opcodes(CONTEXT_LINES):
        first, last = group[0], group[-1]
        yield f"@@ -{_range(first[1], last[2])} +{_range(first[3], last[4])} @@"
        for tag, begin, end, new_begin, new_end in group:
            if tag == "equal":
                yield from (f" {line}" for line in old[begin:end])
                continue
            yield from (f"-{line}" for line in old[begin:end])
            yield from (f"+{line}" for line in new[new_begin:new_end])


def _range(begin: int, end: int) -> str:
    """Return a range of lines as unified diffs write it."""
    count = end - begin
    if count == 1:
        return str(begin + 1)
    return f"{begin + 1 if count else begin},{count}"


def _blocks(old: Sequence[str], new: Sequence[str], work: Work) -> Iterator[Block]:
    """Yield matching blocks (start in old, start in new, length), and at last the empty one at both ends."""
    shorter = min(len(old), len(new))
    head = next((at for at in range(shorter) if old[at] != new[at]), shorter)
    tail = next((at for at in range(shorter - head) if old[-1 - at] != new[-1 - at]), shorter - head)
    if head:
        yield 0, 0, head
    middle = _paired(old[head : len(old) - tail], new[head : len(new) - tail], work)
    yield from ((x + head, y + head, size) for x, y, size in middle)
    if tail:
        yield len(old) - tail, len(new) - tail, tail
    yield len(old), len(new), 0


def _paired(old: Sequence[str], new: Sequence[str], work: Work) -> Sequence[Block]:
    """Return the matching blocks of a shortest edit script, none where it is too long to be found."""
    trace = _trace(old, new, work)
    if trace is None:
        return ()
    blocks: list[Block] = []
    x, y = len(old), len(new)
    for edits in range(len(trace) - 1, -1, -1):
        furthest, k = trace[edits], x - y
        is_down = k == -edits or (k != edits and furthest.get(k - 1, -1) < furthest.get(k + 1, -1))
        before = k + 1 if is_down else k - 1
        begin_x = furthest.get(before, 0) if edits else 0
        start = begin_x if is_down or not edits else begin_x + 1
        if x > start:
            blocks.append((start, start - k, x - start))
        x, y = begin_x, begin_x - before
    return blocks[::-1]


def _trace(old: Sequence[str], new: Sequence[str], work: Work) -> list[dict[int, int]] | None:
    """Return the furthest reach of each number of edits by diagonal, as it was before; None when the work ends."""
    furthest, trace = {1: 0}, []
    for edits in range(min(len(old) + len(new), MAX_EDITS) + 1):
        trace.append(dict(furthest))
        work.steps -= len(furthest)
        for k in range(-edits, edits + 1, 2):
            is_down = k == -edits or (k != edits and furthest[k - 1] < furthest[k + 1])
            x = begin = furthest[k + 1] if is_down else furthest[k - 1] + 1
            while x < len(old) and x - k < len(new) and old[x] == new[x - k]:
                x += 1
            work.steps -= x - begin + 1
            furthest[k] = x
            if x >= len(old) and x - k >= len(new):
                return trace
        if work.steps < 0:
            return None
    return None
