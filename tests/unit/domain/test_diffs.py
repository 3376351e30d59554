"""Differences of two bundles, within limits that hostile files cannot pass."""

from __future__ import annotations

from builderd.domain.bundles import Bundle, BundleFile, make_bundle
from builderd.domain.diffs import MAX_BYTES, MAX_SHOWN_LINES, ChangeKind, compare


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
    assert found["main.py"].lines[1:] == (" one", "-two", "+2", " three", " ")


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
