"""Patches that git applies, whatever files are called."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from builderd.domain.bundles import Bundle, BundleFile, make_bundle
from builderd.domain.diffs import ChangeKind, FileDiff, compare, patch


def bundle(files: dict[str, bytes]) -> Bundle:
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
    text = patch(compare(bundle(OLD), bundle(NEW)), 1, 2)
    apply(text, tmp_path)
    found = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    # Binary files are named alone.
    assert found == {**NEW, "b.bin": OLD["b.bin"]}
    assert "Left out, binary, not UTF-8, too long or without other lines: b.bin\n" in text


def test_file_that_is_not_utf_8_is_named_and_left_out(tmp_path: Path) -> None:
    old = {"latin.txt": b"caf\xe9\n1\n", "plain.txt": b"1\n", "gone.txt": b"\xff\n"}
    new = {"latin.txt": b"caf\xe9\n2\n", "plain.txt": b"2\n", "new.txt": b"x\xff"}
    text = patch(compare(bundle(old), bundle(new)), 1, 2)
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
