"""Ranges and conditions, as RFC 9110 has them."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from builderd.api.v1.files import Part, RangeNotSatisfiable, condition_of, is_known, part_of
from builderd.domain.errors import BadRequest
from builderd.domain.files import Condition

WHOLE = Part(0, 100, 100, whole=True)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("bytes=0-9", Part(0, 10, 100)),
        ("bytes=90-", Part(90, 10, 100)),
        ("bytes=90-1000", Part(90, 10, 100)),
        ("bytes=-10", Part(90, 10, 100)),
        ("bytes=-1000", Part(0, 100, 100)),
        ("bytes= 0 - 0 ", Part(0, 1, 100)),
        ("bytes=9-0", WHOLE),
        ("bytes=-", WHOLE),
        ("bytes=0-1,5-6", WHOLE),
        ("lines=0-9", WHOLE),
        ("bytes=0-9" * 100, WHOLE),
        ("bytes=" + "9" * 50 + "-", WHOLE),
        ("bytes=0x1-5", WHOLE),
        ("", WHOLE),
    ],
)
def test_a_single_range_is_honoured_and_anything_else_is_the_whole(text: str, part: Part) -> None:
    assert part_of(Headers({"Range": text}), 100, "tag") == part


@pytest.mark.parametrize(("text", "size"), [("bytes=100-", 100), ("bytes=0-0", 0), ("bytes=-0", 100), ("bytes=-5", 0)])
def test_bytes_that_do_not_exist_are_refused(text: str, size: int) -> None:
    with pytest.raises(RangeNotSatisfiable) as refused:
        part_of(Headers({"Range": text}), size, "tag")
    assert refused.value.data == {"size": size}


def test_a_range_of_another_content_is_the_whole() -> None:
    assert part_of(Headers({"Range": "bytes=0-9", "If-Range": '"other"'}), 100, "tag") == WHOLE
    assert part_of(Headers({"Range": "bytes=0-9", "If-Range": '"tag"'}), 100, "tag") == Part(0, 10, 100)
    assert part_of(Headers({"Range": "bytes=0-9", "If-Range": 'W/"tag"'}), 100, "tag") == WHOLE


def test_a_part_says_where_it_lies() -> None:
    assert Part(10, 5, 100).content_range == "bytes 10-14/100"


@pytest.mark.parametrize(
    ("text", "tags"),
    [('"a"', {"a"}), ('"a", "b,c"', {"a", "b,c"}), ("*", {"*"}), ('W/"a"', {"W/"}), ('"a" ,W/"b"', {"a", "W/"})],
)
def test_tags_are_read(text: str, tags: set[str]) -> None:
    assert condition_of(Headers({"If-Match": text})) == Condition(matches=frozenset(tags))


@pytest.mark.parametrize("text", ["", "a", '"a" "b"', '"a', '"a\x7f"', "**", "W/*"])
def test_a_condition_that_cannot_be_read_does_not_pass_for_none(text: str) -> None:
    for name in ("If-Match", "If-None-Match"):
        with pytest.raises(BadRequest, match="entity tags"):
            condition_of(Headers({name: text}))


def test_a_known_content_is_recognized_also_by_a_weak_tag() -> None:
    assert is_known(Headers({"If-None-Match": 'W/"tag"'}), "tag")
    assert is_known(Headers({"If-None-Match": "*"}), "tag")
    assert not is_known(Headers({"If-None-Match": '"other"'}), "tag")
    assert not is_known(Headers({}), "tag")
