"""Differences of two bundles, within limits that hostile files cannot pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from builderd.domain import diffs
from builderd.domain.bundles import Bundle, BundleFile, make_bundle
from builderd.domain.diffs import MAX_BYTES, MAX_SHOWN_CHARACTERS, MAX_SHOWN_LINES, ChangeKind, Work, compare, unified


def bundle(**files: bytes) -> Bundle:
    return make_bundle([BundleFile(name.replace("_", "."), content) for name, content in files.items()])


def test_added_removed_and_changed_files_are_named_with_their_lines() -> None:
    old = bundle(same_py=b"1\n", gone_py=b"a\nb\n", main_py=b"one\ntwo\nthree\n")
    new = bundle(same_py=b"1\n", main_py=b"one\n2\nthree\n", new_py=b"x\n")
    found = {one.path: one for one in compare(old, new)}
    assert {path: one.kind for path, one in found.items()} == {
        "gone.py": ChangeKind.REMOVED,
        "main.py": ChangeKind.CHANGED,
        "new.py": ChangeKind.ADDED,
    }
    assert (found["main.py"].added, found["main.py"].removed) == (1, 1)
    assert found["main.py"].lines[1:] == (" one", "-two", "+2", " three")


def test_binary_and_large_files_are_named_alone() -> None:
    old = bundle(a_bin=b"\0one", b_txt=b"x" * (MAX_BYTES + 1))
    new = bundle(a_bin=b"\0two", b_txt=b"y" * (MAX_BYTES + 1))
    assert [(one.path, one.compared, one.lines) for one in compare(old, new)] == [
        ("a.bin", False, ()),
        ("b.txt", False, ()),
    ]


def test_all_lines_together_are_limited() -> None:
    new = make_bundle([BundleFile(f"{number}.txt", b"line\n" * 3_000) for number in range(4)])
    found = compare(make_bundle([]), new)
    assert sum(len(one.lines) for one in found) <= MAX_SHOWN_LINES
    assert [one.compared for one in found] == [True, False, False, False]


def test_many_hostile_files_share_one_amount_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Work] = []

    def recorded(old: Sequence[str], new: Sequence[str], work: Work) -> Iterator[str]:
        given.append(work)
        return unified(old, new, work)

    monkeypatch.setattr(diffs, "unified", recorded)
    texts = {f"f{number}_py": b"a\nb\n" for number in range(5)}
    compare(bundle(**texts), bundle(**dict.fromkeys(texts, b"b\na\n")))
    assert len(given) == 5
    assert len({id(work) for work in given}) == 1


def test_long_lines_are_counted_by_their_characters() -> None:
    old = bundle(a_txt=b"x", b_txt=b"x", c_txt=b"x", d_txt=b"x")
    new = bundle(**dict.fromkeys(("a_txt", "b_txt", "c_txt", "d_txt"), b"y" * 390000))
    found = compare(old, new)
    assert [one.compared for one in found] == [True, True, False, False]
    assert sum(len(line) for one in found for line in one.lines) <= MAX_SHOWN_CHARACTERS
