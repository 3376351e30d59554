"""Differences of two bundles, within limits that hostile files cannot pass."""

from __future__ import annotations

import difflib
import random
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from builderd.code.model import Bundle, BundleFile, make_bundle
from builderd.versions import diffs
from builderd.versions.diffs import (
    MAX_BYTES,
    MAX_SHOWN_CHARACTERS,
    MAX_SHOWN_LINES,
    ChangeKind,
    FileDiff,
    Work,
    compare,
    patch,
    unified,
)


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


HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")


def patched(old: list[str], diff: list[str]) -> list[str]:
    """Apply a unified diff; its hunks' ranges and context must fit."""
    new, at = [], 0
    for line in diff:
        match = HUNK.fullmatch(line)
        if match:
            begin = int(match[1]) - (match[2] != "0")
            new += old[at:begin]
            at = begin
            assert int(match[3]) - (match[4] != "0") == len(new)
        elif line[0] == "+":
            new.append(line[1:])
        else:
            assert old[at] == line[1:]
            at += 1
            new += [line[1:]] if line[0] == " " else []
    return new + old[at:]


def test_the_diff_of_random_texts_leads_from_one_to_the_other() -> None:
    chance = random.Random(7)
    for _ in range(300):
        old = [chance.choice("abcde") for _ in range(chance.randrange(40))]
        new = [chance.choice("abcde") for _ in range(chance.randrange(40))]
        assert patched(old, list(unified(old, new, Work()))) == new


def test_a_small_change_reads_as_difflib_writes_it() -> None:
    old = [f"line {number}" for number in range(50)]
    new = [*old[:10], "inserted", *old[10:30], "changed", *old[31:]]
    assert list(unified(old, new, Work())) == list(difflib.unified_diff(old, new, lineterm=""))[2:]


def test_hostile_texts_use_up_the_work_and_no_more() -> None:
    common = [f"l{number % 105}" for number in range(2000)]
    old = [line for number, shared in enumerate(common) for line in (shared, f"u{number}")]
    new = [line for number, shared in enumerate(common) for line in (shared, f"v{number}")]
    work = Work()
    assert patched(old, list(unified(old, new, work))) == new
    # The search that was begun last ends: each line is looked at with those that equal it.
    assert work.steps > -len(old) * 50
    again = list(unified(old, new, work))
    assert patched(old, again) == new


def one_file(files: dict[str, bytes]) -> Bundle:
    return make_bundle([BundleFile(name, content) for name, content in files.items()])


def apply(text: str, folder: Path) -> None:
    subprocess.run(["git", "apply", "--no-index", "-p1", "-"], cwd=folder, input=text.encode(), check=True)


OLD = {
    "same.py": b"1\n",
    "gone.py": b"a\nb\n",
    "main.py": b"".join(b"%d\n" % number for number in range(50)),
    "open end.txt": b"one\ntwo",
    "ended.txt": b"one\ntwo\n",
    "empty.txt": b"",
    "b.bin": b"\0one",
    'quo"te\\d.txt': b"x\n",
}
NEW = {
    "same.py": b"1\n",
    "main.py": b"".join(b"%d\n" % (number + 100 * (number in (3, 40))) for number in range(51)),
    "open end.txt": b"one\n2",
    "ended.txt": b"one\ntwo",
    "new.py": b"x\n\n",
    "b.bin": b"\0two",
    'quo"te\\d.txt': b"y\n",
    "\u202eevil\u2028.txt": b"z\n",
}


def test_git_applies_the_patch(tmp_path: Path) -> None:
    for name, content in OLD.items():
        (tmp_path / name).write_bytes(content)
    text = patch(compare(one_file(OLD), one_file(NEW)), 1, 2)
    apply(text, tmp_path)
    found = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    # Binary files are named alone.
    assert found == {**NEW, "b.bin": OLD["b.bin"]}
    assert "Left out, binary, not UTF-8, too long or without other lines: b.bin\n" in text


def test_file_that_is_not_utf_8_is_named_and_left_out(tmp_path: Path) -> None:
    old = {"latin.txt": b"caf\xe9\n1\n", "plain.txt": b"1\n", "gone.txt": b"\xff\n"}
    new = {"latin.txt": b"caf\xe9\n2\n", "plain.txt": b"2\n", "new.txt": b"x\xff"}
    text = patch(compare(one_file(old), one_file(new)), 1, 2)
    for name in ("latin.txt", "gone.txt", "new.txt"):
        assert f"Left out, binary, not UTF-8, too long or without other lines: {name}\n" in text
    for name, content in old.items():
        (tmp_path / name).write_bytes(content)
    apply(text, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {**old, "plain.txt": b"2\n"}


def test_git_applies_executable_bits(tmp_path: Path) -> None:
    old = {"on.sh": (b"1\n", False), "off it.sh": (b"1\n", True), "both.sh": (b"1\n", False), "gone.sh": (b"", True)}
    new = {"on.sh": (b"1\n", True), "off it.sh": (b"1\n", False), "both.sh": (b"2\n", True), "new.sh": (b"3\n", True)}
    before, after = (make_bundle([BundleFile(name, *one) for name, one in files.items()]) for files in (old, new))
    for name, (content, executable) in old.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o755 if executable else 0o644)
    text = patch(compare(before, after), 1, 2)
    apply(text, tmp_path)
    assert "Left out" not in text
    assert {one.name: (one.read_bytes(), bool(one.stat().st_mode & 0o100)) for one in tmp_path.iterdir()} == new


@pytest.mark.parametrize(
    "name", ["a\n+++ b/etc/passwd", "a\r\ndiff --git a/x b/x", 'a" b', "a\x1b[2J", "a\u202eb", "a\x85b"]
)
@pytest.mark.parametrize("compared", [True, False])
def test_hostile_name_is_quoted_on_one_line(name: str, compared: bool) -> None:
    lines = ("@@ -0,0 +1 @@", "+x") if compared else ()
    text = patch([FileDiff(name, ChangeKind.ADDED, compared, 1, 0, lines)], 1, 2)
    assert len(text.splitlines()) == (8 if compared else 3)
    assert all(line.isprintable() for line in text.split("\n"))
