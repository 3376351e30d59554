"""Patches that git applies, whatever files are called."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from builderd.domain.bundles import Bundle, BundleFile, make_bundle
from builderd.domain.diffs import ChangeKind, FileDiff, compare
from builderd.domain.patches import patch


def bundle(files: dict[str, bytes]) -> Bundle:
    return make_bundle([BundleFile(name, content) for name, content in files.items()])


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
    subprocess.run(["git", "apply", "--no-index", "-p1", "-"], cwd=tmp_path, input=text.encode(), check=True)
    found = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    # Binary files are named alone.
    assert found == {**NEW, "b.bin": OLD["b.bin"]}
    assert "Left out, binary, too long or without other lines: b.bin" in text


@pytest.mark.parametrize(
    "name", ["a\n+++ b/etc/passwd", "a\r\ndiff --git a/x b/x", 'a" b', "a\x1b[2J", "a\u202eb", "a\x85b"]
)
@pytest.mark.parametrize("compared", [True, False])
def test_hostile_name_is_quoted_on_one_line(name: str, compared: bool) -> None:
    lines = ("@@ -0,0 +1 @@", "+x") if compared else ()
    text = patch([FileDiff(name, ChangeKind.ADDED, compared, 1, 0, lines)], 1, 2)
    assert len(text.splitlines()) == (8 if compared else 3)
    assert all(line.isprintable() for line in text.split("\n"))
