"""Ranges of a content, and conditions on it: RFC 9110, sections 13 and 14."""

from __future__ import annotations

import re
from dataclasses import dataclass

from starlette.datastructures import Headers

from builderd.domain.errors import BadRequest, BuilderdError
from builderd.domain.files import Condition

#: Digits of a position: enough for any file, too few to overflow when added to.
_DIGITS = 18
_RANGE = re.compile(rf"bytes=\s*(\d{{0,{_DIGITS}}})\s*-\s*(\d{{0,{_DIGITS}}})\s*")
_TAG = re.compile(r'\s*(?:\*|(W/)?"([\x21\x23-\x7e\x80-\xff]*)")\s*(?:,|$)')


class RangeNotSatisfiable(BuilderdError):
    """Error for a range of which no byte exists."""

    code = "range_not_satisfiable"


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a content of ``size`` bytes: ``length`` bytes from ``start``; ``whole`` without a range."""

    start: int
    length: int
    size: int
    whole: bool = False

    @property
    def content_range(self) -> str:
        return f"bytes {self.start}-{self.start + self.length - 1}/{self.size}"


def part_of(headers: Headers, size: int, tag: str) -> Part:
    """Return the part to send; the whole where the header is no single range of bytes (RFC 9110, 14.2).

    Raises ``RangeNotSatisfiable``.
    """
    whole = Part(0, size, size, whole=True)
    match = _RANGE.fullmatch(headers.get("range", ""))
    if match is None or not (match[1] or match[2]) or headers.get("if-range", quoted(tag)) != quoted(tag):
        return whole
    first, last = (int(text) if text else None for text in match.groups())
    if first is None:
        assert last is not None
        start, end = max(size - last, 0), size
    elif last is not None and last < first:
        return whole
    else:
        start, end = first, size if last is None else min(last + 1, size)
    if start >= end:
        raise RangeNotSatisfiable(f"The file has {size} bytes.", data={"size": size})
    return Part(start, end - start, size)


def quoted(tag: str) -> str:
    """Return the tag in quotes, as an entity tag."""
    return f'"{tag}"'


def condition_of(headers: Headers) -> Condition:
    """Return ``If-Match`` and ``If-None-Match``. Raises ``BadRequest`` for a malformed one instead of ignoring it."""
    return Condition(_tags(headers, "if-match", weak=False), _tags(headers, "if-none-match", weak=True))


def is_known(headers: Headers, tag: str) -> bool:
    """Return whether the caller has the content with this tag already (``If-None-Match``)."""
    tags = _tags(headers, "if-none-match", weak=True)
    return tags is not None and ("*" in tags or tag in tags)


def _tags(headers: Headers, name: str, *, weak: bool) -> frozenset[str] | None:
    """Return the entity tags in a header, None without it. Raises ``BadRequest`` for a malformed one.

    Without ``weak`` the comparison is strong: a weak tag becomes ``W/``, which equals no tag of a file.
    """
    text = ", ".join(headers.getlist(name)).strip()
    if name not in headers:
        return None
    tags: set[str] = set()
    position = 0
    while position < len(text) or not tags:
        match = _TAG.match(text, position)
        if match is None:
            raise BadRequest(f'The header {name} must be * or a list of entity tags in quotes, such as "1a-2b".')
        position = match.end()
        if match[2] is None:
            tags.add("*")
        elif weak or not match[1]:
            tags.add(match[2])
        else:
            tags.add("W/")
    return frozenset(tags)
